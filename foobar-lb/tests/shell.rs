//! What a shell and `man` are given: real ones take it.

use std::{
    fs,
    io::Write,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};

/// Completes the last of its arguments, as bash does when Tab is pressed.
const PRESS_TAB: &str = r#"
    source /dev/stdin
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    complete=$(complete -p foobar-lb) complete=${complete#*-F } function=${complete%% *}
    "$function" foobar-lb "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    printf '%s\n' "${COMPREPLY[@]}"
"#;

#[test]
fn bash_completes_words() -> Result<()> {
    let script = completions("bash")?;
    for (words, expected) in [
        (&["at"][..], &["attach"][..]),
        (&["attach", "--xdp-mode", ""], &["auto", "native", "generic"]),
        (&["backend", "d"], &["drain", "disable"]),
        (&["attach", "--p"], &["--pin"]),
        (&["completions", ""], &["bash", "fish", "zsh"]),
        (&["x"], &[]),
    ] {
        let offered = press_tab(&script, words)?;
        let missing: Vec<_> =
            expected.iter().filter(|word| !offered.contains(&(**word).to_owned())).collect();
        ensure!(missing.is_empty(), "for {words:?} it offers {offered:?}, not {missing:?}");
        ensure!(offered.is_empty() == expected.is_empty(), "for {words:?} it offers {offered:?}");
    }
    Ok(())
}

#[test]
fn other_shells_have_scripts_and_unknown_ones_are_refused() -> Result<()> {
    ensure!(completions("zsh")?.starts_with("#compdef foobar-lb"), "that is nothing for zsh");
    ensure!(completions("fish")?.contains("complete -c foobar-lb"), "that is nothing for fish");
    let refused = foobar_lb(&["completions", "tcsh"]).output()?;
    ensure!(refused.status.code() == Some(2), "{refused:?}");
    let full = foobar_lb(&["completions", "bash"]).stdout(fs::File::create("/dev/full")?).output()?;
    ensure!(full.status.code() == Some(1), "{full:?}");
    Ok(())
}

#[test]
fn every_command_has_a_page_that_is_rendered_without_a_warning() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let pages = directory.path().join("man");
    let path = pages.to_str().context("a path of words")?;
    ensure!(foobar_lb(&["manual", path]).status()?.success(), "no pages");
    let help = text(&foobar_lb(&["--help"]).output()?)?;
    let commands = help.split("Commands:").nth(1).context("the help lists commands")?;
    let commands = commands.split("Options:").next().context("and then options")?;
    let is_command = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    for command in commands.lines().filter(is_command).filter_map(|line| line.split_whitespace().next()) {
        let exists = pages.join(format!("foobar-lb-{command}.1")).exists();
        ensure!(exists || command == "help", "{command} has no page");
    }
    for page in fs::read_dir(&pages)? {
        let page = page?.path();
        let rendered = Command::new("groff").args(["-man", "-Tutf8", "-ww"]).arg(&page).output();
        let rendered = rendered.context("groff, which renders pages for man, is not there")?;
        let complaints = String::from_utf8_lossy(&rendered.stderr);
        ensure!(rendered.status.success() && complaints.is_empty(), "{}: {complaints}", page.display());
        ensure!(rendered.stdout.len() > 200, "{} is empty", page.display());
    }
    let refused = foobar_lb(&["manual", "/proc/nowhere"]).output()?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    Ok(())
}

fn completions(shell: &str) -> Result<String> {
    text(&foobar_lb(&["completions", shell]).output()?)
}

/// What bash offers for the last of the words after `foobar-lb`.
fn press_tab(script: &str, words: &[&str]) -> Result<Vec<String>> {
    let mut command = Command::new("bash");
    command.args(["--norc", "-c", PRESS_TAB, "bash", "foobar-lb"]).args(words);
    let mut bash = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    bash.stdin.take().context("it has a pipe")?.write_all(script.as_bytes())?;
    let offered = text(&bash.wait_with_output()?)?;
    Ok(offered.split_whitespace().map(str::to_owned).collect())
}

fn foobar_lb(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_foobar-lb"));
    command.args(words);
    command
}

fn text(output: &Output) -> Result<String> {
    ensure!(output.status.success(), "{output:?}");
    Ok(str::from_utf8(&output.stdout)?.to_owned())
}
