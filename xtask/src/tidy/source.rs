//! One Rust file as the rules see it: its lines, the paths and the `unsafe` in its code, its functions. Code
//! under `#[cfg(test)]` counts for length alone.

use std::iter::Peekable;

use anyhow::{Result, anyhow};
use proc_macro2::token_stream::IntoIter;
use proc_macro2::{Delimiter, Group, Ident, TokenStream, TokenTree};

/// A file that was read.
pub struct Source<'a> {
    /// The file's name in the workspace, with slashes.
    pub name: &'a str,
    pub text: &'a str,
    pub paths: Vec<Named>,
    pub unsafes: Vec<usize>,
    pub functions: Vec<Function>,
}

/// A path in the code, such as `std::fs::File`, without its generic arguments; every one in braces is whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    pub line: usize,
    pub path: String,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub line: usize,
    pub name: String,
    /// From `fn` to the closing brace.
    pub length: usize,
}

impl<'a> Source<'a> {
    /// Reads a file. It must consist of Rust's tokens with matching brackets.
    pub fn parse(name: &'a str, text: &'a str) -> Result<Self> {
        let tokens: TokenStream = text.parse().map_err(|error| anyhow!("{error}"))?;
        let mut source = Self { name, text, paths: vec![], unsafes: vec![], functions: vec![] };
        source.read_functions(tokens.clone());
        source.read_code(tokens, "");
        Ok(source)
    }

    /// Finds paths and `unsafe`. `prefix` is the path before the braces the tokens were in.
    fn read_code(&mut self, tokens: TokenStream, prefix: &str) {
        let mut tokens = Tokens::new(tokens);
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == '#' && tokens.take_test_attribute() => {
                    tokens.skip_item();
                }
                TokenTree::Ident(ident) if ident == "unsafe" => self.unsafes.push(line_of(&ident)),
                TokenTree::Ident(ident) => self.read_path(&ident, prefix, &mut tokens),
                TokenTree::Group(group) => self.read_code(group.stream(), ""),
                _ => {}
            }
        }
    }

    fn read_path(&mut self, first: &Ident, prefix: &str, tokens: &mut Tokens) {
        let mut path = format!("{prefix}{first}");
        while tokens.take_colons() {
            match tokens.next() {
                Some(TokenTree::Ident(ident)) => path += &format!("::{ident}"),
                Some(TokenTree::Group(group)) => {
                    return self.read_code(group.stream(), &format!("{path}::"));
                }
                _ => break,
            }
        }
        self.paths.push(Named { line: line_of(first), path });
    }

    fn read_functions(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Ident(keyword) if keyword == "fn" => self.read_function(&keyword, &mut tokens),
                TokenTree::Group(group) => self.read_functions(group.stream()),
                _ => {}
            }
        }
    }

    fn read_function(&mut self, keyword: &Ident, tokens: &mut IntoIter) {
        // A type, as in `fn(u8) -> u8`, has no name.
        let Some(TokenTree::Ident(name)) = tokens.next() else { return };
        for token in tokens {
            match token {
                TokenTree::Group(body) if body.delimiter() == Delimiter::Brace => {
                    let line = line_of(keyword);
                    let length = body.span_close().end().line - line + 1;
                    self.functions.push(Function { line, name: name.to_string(), length });
                    return self.read_functions(body.stream());
                }
                TokenTree::Punct(punct) if punct.as_char() == ';' => return,
                _ => {}
            }
        }
    }
}

/// Tokens with a look at the next one.
struct Tokens(Peekable<IntoIter>);

impl Tokens {
    fn new(tokens: TokenStream) -> Self {
        Self(tokens.into_iter().peekable())
    }

    fn next(&mut self) -> Option<TokenTree> {
        self.0.next()
    }

    fn take_colons(&mut self) -> bool {
        let is_colon = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ':');
        // A single colon before a type is never joint with what follows it.
        let is_first = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.spacing() == proc_macro2::Spacing::Joint);
        let found = self.0.next_if(|token| is_colon(token) && is_first(token)).is_some();
        found && self.0.next_if(is_colon).is_some()
    }

    fn take_test_attribute(&mut self) -> bool {
        let is_test = |group: &Group| group.stream().to_string().replace(' ', "") == "cfg(test)";
        self.0.next_if(|token| matches!(token, TokenTree::Group(group) if is_test(group))).is_some()
    }

    fn skip_item(&mut self) {
        let ends_item = |token: &TokenTree| match token {
            TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
            TokenTree::Punct(punct) => punct.as_char() == ';',
            _ => false,
        };
        self.0.find(ends_item);
    }
}

fn line_of(ident: &Ident) -> usize {
    ident.span().start().line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Source<'_> {
        Source::parse("a.rs", text).unwrap()
    }

    fn paths(text: &str) -> Vec<String> {
        parse(text).paths.into_iter().map(|named| named.path).collect()
    }

    #[test]
    fn finds_every_path_of_a_use() {
        let text = "use std::{fs::{self, File}, net};";
        assert_eq!(paths(text), ["use", "std::fs::self", "std::fs::File", "std::net"]);
    }

    #[test]
    fn finds_paths_in_expressions() {
        assert_eq!(paths("fn f() { let at = std::time::Instant::now(); }")[4..], ["std::time::Instant::now"]);
        assert_eq!(paths("struct S { file: std::fs::File }")[2..], ["file", "std::fs::File"]);
    }

    #[test]
    fn sees_no_paths_in_comments_and_strings() {
        assert_eq!(paths("// std::fs\n/* aya::Ebpf */ \"std::net\""), [""; 0]);
    }

    #[test]
    fn leaves_out_the_code_of_tests() {
        let text = "use a::b; #[cfg(test)] mod tests { use std::fs; unsafe {} } use c::d;";
        assert_eq!(paths(text), ["use", "a::b", "use", "c::d"]);
        assert!(parse(text).unsafes.is_empty());
    }

    #[test]
    fn finds_unsafe() {
        assert_eq!(parse("fn f() {\n unsafe { g() }\n}").unsafes, [2]);
    }

    #[test]
    fn measures_functions() {
        let text =
            "type T = fn(u8) -> u8;\nimpl A {\n fn b(&self)\n where\n  A: B,\n {\n }\n}\ntrait C { fn d(); }";
        let b = Function { line: 3, name: "b".to_owned(), length: 5 };
        assert_eq!(parse(text).functions, [b]);
    }
}
