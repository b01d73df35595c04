//! One server of the site: a network, a host name and a file system of its own in which its software is
//! deployed where it would be on a real server, so that the configuration in `site/` is used as it is.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Namespace, Process};

/// Gives the program its host name, puts the server's directories over this machine's, and becomes it.
const ENTER: &str = r#"
hostname "$1"; root=$2; directories=$3; shift 3
for directory in $directories; do mount --bind "$root/$directory" "/$directory"; done
exec "$@"
"#;

/// A server and, once started, its one program.
pub(super) struct Server {
    name: String,
    namespace: Namespace,
    /// Holds the server's own directories, under the names they have for the server.
    root: PathBuf,
    directories: &'static [&'static str],
    program: Option<Program>,
}

/// What a server runs, kept to start it anew.
struct Program {
    words: Vec<String>,
    environment: Vec<(String, String)>,
    process: Process,
    /// When it was first seen to have ended by itself.
    ended: Option<Instant>,
}

impl Server {
    /// A server with empty directories of its own, which this machine must have too (`/etc/nginx`).
    ///
    /// # Errors
    /// If a directory cannot be made, or this machine lacks it.
    pub(super) fn new(
        name: &str,
        namespace: Namespace,
        directories: &'static [&'static str],
    ) -> Result<Self> {
        let root = namespace.directory().join(name);
        for directory in directories {
            let replaced = Path::new("/").join(directory);
            ensure!(replaced.is_dir(), "{} is missing; `cargo xtask setup` installs it", replaced.display());
            let path = root.join(directory);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        Ok(Self { name: name.to_owned(), namespace, root, directories, program: None })
    }

    /// Its name, which is its host name too.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Copies a file or a directory of this machine to `target`, a path in one of the server's directories.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub(super) fn copy(&self, source: &Path, target: &str) -> Result<()> {
        let target = self.path(target);
        if source.is_dir() {
            fs::create_dir_all(&target)?;
            for entry in fs::read_dir(source)? {
                let name = entry?.file_name();
                let inner = target.join(&name);
                fs::copy(source.join(&name), &inner)
                    .with_context(|| format!("cannot copy to {}", inner.display()))?;
            }
            return Ok(());
        }
        self.write(&target, &fs::read(source).with_context(|| format!("cannot read {}", source.display()))?)
    }

    /// Writes a file of the server.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write_file(&self, target: &str, contents: &str) -> Result<()> {
        self.write(&self.path(target), contents.as_bytes())
    }

    /// Runs a command on the server to its end and returns what it printed.
    ///
    /// # Errors
    /// If it does not exit with 0; the error shows what it printed.
    pub(super) fn run<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<String> {
        let output = self
            .command(words)
            .output()
            .with_context(|| format!("cannot start a command on {}", self.name))?;
        let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        let command = words[0].as_ref().to_string_lossy();
        ensure!(
            output.status.success(),
            "{command} on {} ended with {}: {stdout}{stderr}",
            self.name,
            output.status
        );
        Ok(stdout.into_owned())
    }

    /// Starts a command on the server beside its program, with these variables in its environment.
    ///
    /// # Errors
    /// If it cannot start.
    pub(super) fn start(
        &self,
        name: &str,
        words: &[String],
        environment: &[(String, String)],
    ) -> Result<Process> {
        let mut command = self.command(words);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Process::start(&format!("{}-{name}", self.name), command, self.namespace.directory())
    }

    /// Starts the server's program.
    ///
    /// # Errors
    /// If it cannot start.
    pub(super) fn serve(&mut self, words: &[&str], environment: &[(String, String)]) -> Result<()> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let process = self.start("program", &words, environment)?;
        self.program = Some(Program { words, environment: environment.to_vec(), process, ended: None });
        Ok(())
    }

    /// Kills the program and all its children, as `kill -9` does.
    ///
    /// # Errors
    /// If nothing was started.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.program()?.process.kill()
    }

    /// Starts the program again, after [`kill`](Self::kill) or its own end.
    ///
    /// # Errors
    /// If nothing was started before, or it cannot start.
    pub(super) fn restart(&mut self) -> Result<()> {
        let mut ended =
            self.program.take().with_context(|| format!("nothing was started on {}", self.name))?;
        // Workers outlive a master that was killed, and hold its port.
        ended.process.kill()?;
        let words: Vec<_> = ended.words.iter().map(String::as_str).collect();
        self.serve(&words, &ended.environment)
    }

    /// Starts the program again if it ended by itself `delay` ago. Says so when it ends and when it starts.
    ///
    /// # Errors
    /// If nothing was started before, or it cannot start.
    pub(super) fn revive(&mut self, delay: Duration) -> Result<Option<String>> {
        let name = self.name.clone();
        let program = self.program()?;
        if !program.process.has_ended()? {
            return Ok(None);
        }
        let command = program.words[0].rsplit('/').next().unwrap_or_default().to_owned();
        match program.ended {
            None => {
                program.ended = Some(Instant::now());
                Ok(Some(format!("{command} ended on {name}; it starts again in {delay:?}")))
            }
            Some(ended) if ended.elapsed() < delay => Ok(None),
            Some(_) => self.restart().map(|()| Some(format!("{command} starts again on {name}"))),
        }
    }

    /// The running program.
    ///
    /// # Errors
    /// If nothing was started.
    pub(super) fn process(&mut self) -> Result<&mut Process> {
        Ok(&mut self.program()?.process)
    }

    fn program(&mut self) -> Result<&mut Program> {
        self.program.as_mut().with_context(|| format!("nothing was started on {}", self.name))
    }

    fn command<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let mut command = self.namespace.command("unshare");
        command.args(["--mount", "--uts", "--", "sh", "-ec", ENTER, "sh", &self.name]);
        command.arg(&self.root).arg(self.directories.join(" ")).args(words);
        command
    }

    fn path(&self, target: &str) -> PathBuf {
        self.root.join(target.trim_start_matches('/'))
    }

    fn write(&self, target: &Path, contents: &[u8]) -> Result<()> {
        let parent = target.parent().expect("a target lies within the server's root");
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::write(target, contents).with_context(|| format!("cannot write {}", target.display()))
    }
}
