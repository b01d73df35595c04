//! `cargo xtask bench report`: what benches have written as JSON, as one file, as one page that needs no other, and as the
//! parts of documents that hold figures. What the figures mean is in docs/performance.md.

mod chapter;
mod document;
mod figures;
mod page;
mod plot;
mod series;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use chapter::Chapter;

/// Reads the files of benches, writes `report.json` and `report.html` to a directory, and brings documents up to date.
pub fn report(files: &[PathBuf], out: &Path, documents: &[PathBuf]) -> Result<()> {
    let runs = files.iter().map(|file| read_run(file)).collect::<Result<Vec<_>>>()?;
    let chapters = runs.iter().map(Chapter::of).collect::<Result<Vec<_>>>()?;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    write(&out.join("report.json"), &format!("{:#}\n", json!({ "runs": runs })))?;
    write(&out.join("report.html"), &page::render(&chapters))?;
    for file in documents {
        let updated = document::update(&read(file)?, &chapters);
        write(file, &updated.with_context(|| format!("cannot update {}", file.display()))?)?;
    }
    Ok(())
}

/// A bench says which one it is.
fn read_run(file: &Path) -> Result<Value> {
    let run: Value =
        serde_json::from_str(&read(file)?).with_context(|| format!("{} is no JSON", file.display()))?;
    ensure!(
        run["bench"].is_string(),
        "{} is of no bench: write it by `cargo xtask bench BENCH --json FILE`",
        file.display()
    );
    Ok(run)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    println!("{}", file.display());
    Ok(())
}
