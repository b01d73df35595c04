//! Problems of a text and how they are shown: `file:line:column: what is wrong`, the line with a mark under
//! the place, and what would be right. What is a problem is left to those who find it.

use std::{borrow::Borrow, fmt, ops::Range};

use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Renderer, Snippet};
use serde_spanned::Spanned;

use super::values::Fault;

/// A place in the text, in bytes.
pub(super) type Span = Range<usize>;

/// Messages quote the file, and who knows what is in it; in characters.
const MAX_MESSAGE: usize = 500;

/// So many problems are shown; whoever has more mends these first.
const MAX_SHOWN: usize = 20;

/// Of one kind so many problems are kept, the first that are found; the others are counted: a large file that is none of ours
/// has as many as bytes.
const MAX_KEPT: usize = 10_000;

/// Longest piece of the file that is shown between two places; of more, only the first place is.
const MAX_EXCERPT: usize = 64 << 10;

/// Problems of one severity, ready to be shown in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    /// The first ones.
    pub shown: Vec<Diagnostic>,
    /// How many more there are.
    pub omitted: usize,
}

/// One problem, ready to be shown: `Display` is several lines without an end of line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What would be right, where the message does not say it already.
    pub help: Option<String>,
    rendered: String,
}

impl Diagnostics {
    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        self.shown.is_empty()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.shown.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n\n" };
            write!(f, "{separator}{diagnostic}")?;
        }
        if self.omitted > 0 {
            write!(f, "\n\n... and {} more", self.omitted)?;
        }
        Ok(())
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rendered)
    }
}

/// Something wrong, or doubtful, at a place.
pub(super) struct Problem {
    span: Span,
    message: String,
    help: Option<String>,
    related: Option<(Span, String)>,
}

impl Problem {
    pub(super) fn new(span: Span, message: impl Into<String>) -> Self {
        Self { span, message: message.into(), help: None, related: None }
    }

    /// What would be right.
    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Another place that is part of the problem, and what it is.
    pub(super) fn related(mut self, span: Span, label: impl Into<String>) -> Self {
        self.related = Some((span, label.into()));
        self
    }
}

/// Collects what is found, so that everything is reported at once.
pub(super) struct Problems<'a> {
    source: &'a Source<'a>,
    errors: Kept,
    warnings: Kept,
}

#[derive(Default)]
struct Kept {
    problems: Vec<Problem>,
    omitted: usize,
}

impl Kept {
    fn add(&mut self, problem: Problem) {
        if self.problems.len() < MAX_KEPT {
            self.problems.push(problem);
        } else {
            self.omitted += 1;
        }
    }
}

impl<'a> Problems<'a> {
    pub(super) fn new(source: &'a Source<'a>) -> Self {
        Self { source, errors: Kept::default(), warnings: Kept::default() }
    }

    pub(super) fn error(&mut self, problem: Problem) {
        self.errors.add(problem);
    }

    pub(super) fn warn(&mut self, problem: Problem) {
        self.warnings.add(problem);
    }

    pub(super) fn has_errors(&self) -> bool {
        !self.errors.problems.is_empty()
    }

    /// The line of a place, for messages that name another place than their own.
    pub(super) fn line(&self, span: &Span) -> usize {
        self.source.position(span.start).0
    }

    /// The value that `read` makes of what the file says, at its place; absent if that was reported as wrong.
    pub(super) fn read<T: Borrow<B>, B: ?Sized, V>(
        &mut self,
        value: Spanned<T>,
        read: impl FnOnce(&B) -> Result<V, Fault>,
    ) -> Option<Spanned<V>> {
        match read(value.get_ref().borrow()) {
            Ok(read) => Some(Spanned::new(value.span(), read)),
            Err(Fault { message, help }) => {
                self.error(Problem::new(value.span(), message).help(help));
                None
            }
        }
    }

    /// The same for a key that may be absent and then stands for `default`.
    pub(super) fn read_or<T: Borrow<B>, B: ?Sized, V>(
        &mut self,
        value: Option<Spanned<T>>,
        default: V,
        read: impl FnOnce(&B) -> Result<V, Fault>,
    ) -> Option<V> {
        match value {
            Some(value) => self.read(value, read).map(Spanned::into_inner),
            None => Some(default),
        }
    }

    /// The same for a key that the `section` at `place` must have; `example` shows it.
    pub(super) fn read_required<V>(
        &mut self,
        value: Option<Spanned<String>>,
        (section, place): (&str, &Span),
        example: &str,
        read: impl FnOnce(&str) -> Result<V, Fault>,
    ) -> Option<Spanned<V>> {
        if let Some(value) = value {
            return self.read(value, read);
        }
        let (key, _) = example.split_once(' ').expect("an example is `key = value`");
        let problem = Problem::new(place.clone(), format!("this {section} has no `{key}`"));
        self.error(problem.help(format!("for example `{example}`")));
        None
    }

    /// Errors and warnings.
    pub(super) fn into_diagnostics(self) -> (Diagnostics, Diagnostics) {
        (self.source.show("error", self.errors), self.source.show("warning", self.warnings))
    }
}

/// The text and its name.
pub(super) struct Source<'a> {
    name: &'a str,
    text: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    pub(super) fn new(name: &'a str, text: &'a str) -> Self {
        let ends = text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n').map(|(index, _)| index + 1);
        Self { name, text, lines: std::iter::once(0).chain(ends).collect() }
    }

    fn show(&self, severity: &str, Kept { mut problems, omitted }: Kept) -> Diagnostics {
        problems.sort_by_key(|problem| problem.span.start);
        let omitted = omitted + problems.len().saturating_sub(MAX_SHOWN);
        problems.truncate(MAX_SHOWN);
        let shown = problems.into_iter().map(|problem| self.diagnose(severity, problem)).collect();
        Diagnostics { shown, omitted }
    }

    fn diagnose(&self, severity: &str, problem: Problem) -> Diagnostic {
        let Problem { span, message, help, related } = problem;
        let (message, help) = (shorten(message), help.map(shorten));
        let (line, column) = self.position(span.start);
        let title = format!("{}:{line}:{column}: {severity}: {message}", self.name);
        let mut group = Level::ERROR.no_name().primary_title(title).element(self.excerpt(&span, related));
        if let Some(help) = &help {
            group = group.element(Level::HELP.message(help));
        }
        let rendered = render(group);
        Diagnostic { line, column, message, help, rendered }
    }

    /// The lines that a problem is about. Only they are handed on: the renderer goes through all it is given.
    fn excerpt(&self, span: &Span, related: Option<(Span, String)>) -> Snippet<'a, Annotation<'a>> {
        let related = related.filter(|(other, _)| span.start.abs_diff(other.start) <= MAX_EXCERPT);
        let other = related.as_ref().map_or(span.start, |(other, _)| other.start);
        let (first, _) = self.position(span.start.min(other));
        let start = self.lines[first - 1];
        let end = self.line_end(span.start.max(other));
        let mark =
            |span: &Span| span.start - start..span.end.min(self.line_end(span.start)).max(span.start) - start;
        Snippet::source(&self.text[start..end])
            .line_start(first)
            .annotation(AnnotationKind::Primary.span(mark(span)))
            .annotations(
                related.map(|(other, label)| AnnotationKind::Context.span(mark(&other)).label(label)),
            )
    }

    /// Where the line that a byte is in ends, its end of line not included.
    fn line_end(&self, offset: usize) -> usize {
        let (line, _) = self.position(offset);
        self.lines.get(line).map_or(self.text.len(), |next| next - 1)
    }

    /// Line and column of a byte, both from 1, the column in characters.
    fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|&start| start <= offset);
        (line, 1 + self.text[self.lines[line - 1]..offset].chars().count())
    }
}

/// Line and column just behind `text`, both from 1, the column in characters.
pub(super) fn end_of(text: &str) -> (usize, usize) {
    Source::new("", text).position(text.len())
}

fn shorten(text: String) -> String {
    match text.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn render(group: Group<'_>) -> String {
    let rendered = Renderer::plain().render(&[group]);
    rendered.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}
