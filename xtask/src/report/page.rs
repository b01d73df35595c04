//! The page: targets, plots and tables, with nothing from elsewhere.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chapter::{Chapter, Table};
use super::plot::Plot;

const STYLE: &str = include_str!("page.css");
/// Longer tables are folded.
const FOLDED: usize = 30;

/// The page of all runs.
pub fn render(chapters: &[Chapter]) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "foobar-lb: performance" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "foobar-lb: performance" }
                p { "How it was measured is told in " code { "docs/performance.md" } "." }
                h2 { "Targets" }
                @for chapter in chapters { @if let Some(targets) = &chapter.targets {
                    h3 { (chapter.title) }
                    (table(targets))
                } }
                @for chapter in chapters { (render_chapter(chapter)) }
            }
        }
    };
    page.into_string()
}

fn render_chapter(chapter: &Chapter) -> Markup {
    html! {
        h2 { (chapter.title) }
        p.machine { (chapter.machine) }
        p { (chapter.note) }
        @for plot in &chapter.plots { (figure(plot)) }
        @for one in &chapter.tables {
            details open[one.rows.len() <= FOLDED] { summary { (one.caption) } (table(one)) }
        }
    }
}

fn figure(Plot { caption, svg, legend }: &Plot) -> Markup {
    html! {
        figure {
            figcaption { (caption) }
            (PreEscaped(svg))
            @if !legend.is_empty() {
                ul.legend {
                    @for (name, colour) in legend { li style=(format!("--colour: {colour}")) { (name) } }
                }
            }
        }
    }
}

fn table(table: &Table) -> Markup {
    html! {
        div.wide { table {
            thead { tr { @for cell in &table.head { th { (cell) } } } }
            tbody { @for row in &table.rows { tr { @for cell in row { td class=[class(cell)] { (cell) } } } } }
        } }
    }
}

/// Verdicts stand out, and figures stand below each other.
fn class(cell: &str) -> Option<&'static str> {
    match cell {
        "met" => Some("met"),
        "not met" => Some("missed"),
        _ if cell.starts_with(|first: char| first.is_ascii_digit() || first == '-') => Some("figure"),
        _ => None,
    }
}
