//! The parts of a Markdown document that hold figures: what is between `<!-- bench NAME -->`, or `<!-- bench NAME targets -->`,
//! and `<!-- /bench -->`. Parts of benches that were not run stay as they are.

use anyhow::{Result, bail};

use super::chapter::{Chapter, Table};

const END: &str = "<!-- /bench -->";

/// The document with the figures of these runs.
pub fn update(text: &str, chapters: &[Chapter]) -> Result<String> {
    let mut updated = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        updated += &format!("{line}\n");
        let Some(name) = part(line) else { continue };
        let mut old = String::new();
        loop {
            match lines.next() {
                Some(END) => break,
                Some(line) => old += &format!("{line}\n"),
                None => bail!("`{line}` has no `{END}` behind it"),
            }
        }
        updated += &render(name, chapters).unwrap_or(old);
        updated += &format!("{END}\n");
    }
    Ok(updated)
}

/// Which part begins at this line.
fn part(line: &str) -> Option<&str> {
    line.strip_prefix("<!-- bench ")?.strip_suffix(" -->")
}

fn render(part: &str, chapters: &[Chapter]) -> Option<String> {
    let (name, targets_only) = part.strip_suffix(" targets").map_or((part, false), |name| (name, true));
    let chapter = chapters.iter().find(|chapter| chapter.name == name)?;
    let tables: Vec<String> = if targets_only {
        chapter.targets.iter().map(table).collect()
    } else {
        chapter.tables.iter().map(|one| format!("**{}**\n\n{}", one.caption, table(one))).collect()
    };
    Some(format!("\n{}\n\n{}\n", chapter.machine, tables.join("\n")))
}

fn table(table: &Table) -> String {
    let line =
        |cells: &mut dyn Iterator<Item = &str>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
    let mut text = line(&mut table.head.iter().copied());
    text += &line(&mut table.head.iter().map(|_| "---"));
    for row in &table.rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chapter() -> Chapter {
        let caption = "All".to_owned();
        let table =
            Table { caption, head: vec!["", "ns"], rows: vec![vec!["nat".to_owned(), "40".to_owned()]] };
        Chapter {
            name: "kernel".to_owned(),
            title: "",
            note: "",
            machine: "a machine".to_owned(),
            targets: None,
            plots: vec![],
            tables: vec![table],
        }
    }

    #[test]
    fn a_part_is_replaced_and_others_stay() {
        let text = |figures| {
            format!(
                "before\n<!-- bench kernel -->\n{figures}<!-- /bench -->\nbetween\n<!-- bench other -->\nold\n<!-- /bench -->\n"
            )
        };
        let new = "\na machine\n\n**All**\n\n|  | ns |\n| --- | --- |\n| nat | 40 |\n\n";
        let updated = update(&text("old\n"), &[chapter()]).expect("all parts end");
        assert_eq!(updated, text(new));
        assert_eq!(update(&updated, &[chapter()]).expect("all parts end"), updated);
    }

    #[test]
    fn a_part_without_an_end_is_refused() {
        assert!(update("<!-- bench kernel -->\nthe rest\n", &[chapter()]).is_err());
    }
}
