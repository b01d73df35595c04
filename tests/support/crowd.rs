//! A crowd of clients: many long-lived TCP connections to echo servers that ask all the time, and visitors that come,
//! ask once and go. A ledger says who serves them, what broke and what was refused, when and why; what may break is for
//! the story to say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Namespace, wait_until};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use super::{EVENTUALLY, SOON};

/// From one question of a member to its next.
const PAUSE: Duration = Duration::from_millis(200);
/// From one visitor of a service to the next.
const VISITS: Duration = Duration::from_millis(250);
/// How many may join at once, so that no listener's queue overflows.
const DOORS: usize = 64;

/// Clients on a thread of their own. Dropping it ends them.
pub struct Crowd {
    ledger: Ledger,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Crowd {
    /// Opens `size` connections to each of the servers and waits until all have had an answer. A connection that ends
    /// is replaced by a new one.
    pub fn gather(client: &Namespace, servers: &[SocketAddr], size: usize) -> Result<Self> {
        Self::gather_visited(client, servers, size, VISITS)
    }

    /// The same with a visitor of each server every `visits`.
    pub fn gather_visited(
        client: &Namespace,
        servers: &[SocketAddr],
        size: usize,
        visits: Duration,
    ) -> Result<Self> {
        let ledger = Ledger::default();
        let (client, servers, all) = (client.clone(), servers.to_vec(), size * servers.len());
        let thread = thread::spawn({
            let ledger = ledger.clone();
            move || client.enter(|| run(&servers, size, visits, &ledger))?
        });
        let crowd = Self { ledger, thread: Some(thread) };
        crowd.wait_until_whole(all)?;
        crowd.ledger.open().members.values_mut().for_each(|member| member.is_veteran = true);
        Ok(crowd)
    }

    /// Waits until there are so many members.
    pub fn wait_until_whole(&self, size: usize) -> Result<()> {
        wait_until(EVENTUALLY, "the crowd to be whole", || self.ledger.open().members.len() == size)
            .with_context(|| format!("it has {}", self.ledger.open().members.len()))?;
        self.expect_nothing_broken()
    }

    /// How many connections to the server are with the backend.
    pub fn count(&self, server: SocketAddr, backend: &str) -> u64 {
        let page = self.ledger.open();
        let with_it = |member: &&Member| member.server == server && member.backend == backend;
        page.members.values().filter(with_it).count() as u64
    }

    /// How many of the connections that were opened first are still open.
    pub fn count_veterans(&self) -> usize {
        let page = self.ledger.open();
        page.members.values().filter(|member| member.is_veteran).count()
    }

    /// Waits until all connections that are open now have had another answer, or have ended.
    pub fn wait_for_answers(&self) -> Result<()> {
        let page = self.ledger.open();
        let before: Vec<(u64, u64)> = page.members.iter().map(|(id, member)| (*id, member.answers)).collect();
        drop(page);
        wait_until(EVENTUALLY, "everyone to be answered", || {
            let page = self.ledger.open();
            let answered = |id, before| page.members.get(id).is_none_or(|member| member.answers > before);
            before.iter().all(|(id, before)| answered(id, *before))
        })
    }

    /// Has the members that are with the backend close their connections. They join again, and leave again if they
    /// meet that backend before [`expect_again`](Self::expect_again).
    pub fn leave(&self, backend: &str) {
        self.ledger.open().left.insert(backend.to_owned());
    }

    /// Connections to the backend may break from now on.
    pub fn give_up(&self, backend: &str) {
        let mut page = self.ledger.open();
        page.given_up.insert(backend.to_owned());
        page.members
            .values_mut()
            .filter(|member| member.backend == backend)
            .for_each(|member| member.given_up = true);
    }

    /// Takes back what was said of the backend, for connections to come.
    pub fn expect_again(&self, backend: &str) {
        let mut page = self.ledger.open();
        page.given_up.remove(backend);
        page.left.remove(backend);
    }

    /// Whether connections that are opened from now on may fail before their first answer.
    pub fn let_newcomers_fail(&self, may_fail: bool) {
        self.ledger.open().newcomers_may_fail = may_fail;
    }

    /// What the story does from now on: a connection that is lost says so.
    pub fn note_chapter(&self, chapter: &str) {
        chapter.clone_into(&mut self.ledger.open().chapter);
    }

    /// Where others note what befalls their connections.
    pub fn ledger(&self) -> Ledger {
        self.ledger.clone()
    }

    /// No connection may have broken that was not given up, and none been refused.
    pub fn expect_nothing_broken(&self) -> Result<()> {
        let Page { broken, refused, .. } = &*self.ledger.open();
        let shown = broken.iter().chain(refused).take(20).cloned().collect::<Vec<_>>().join("\n");
        let (broke, were_refused) = (broken.len(), refused.len());
        ensure!(
            broke + were_refused == 0,
            "{broke} connections broke, {were_refused} were refused:\n{shown}"
        );
        Ok(())
    }

    /// Has all close their connections, and returns how many were served in all, members and visitors.
    pub fn disperse(mut self) -> Result<u64> {
        self.ledger.open().ends = true;
        let thread = self.thread.take().context("it disperses once")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        self.expect_nothing_broken()?;
        Ok(self.ledger.open().served)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.ledger.open().ends = true;
        let ended = self.thread.take().map_or(Ok(Ok(())), JoinHandle::join);
        assert!(matches!(ended, Ok(Ok(()))) || thread::panicking(), "a crowd failed: {ended:?}");
    }
}

/// Shared by all who are in the crowd and the story.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<Page>>);

struct Page {
    began: Instant,
    /// What the story does.
    chapter: String,
    members: BTreeMap<u64, Member>,
    served: u64,
    /// Connections that had an answer and then did not go on as they should, each with when and why.
    broken: Vec<String>,
    /// Connections that had no answer, each with when and why.
    refused: Vec<String>,
    left: BTreeSet<String>,
    given_up: BTreeSet<String>,
    newcomers_may_fail: bool,
    ends: bool,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            chapter: "the beginning".to_owned(),
            members: BTreeMap::new(),
            served: 0,
            broken: Vec::new(),
            refused: Vec::new(),
            left: BTreeSet::new(),
            given_up: BTreeSet::new(),
            newcomers_may_fail: false,
            ends: false,
        }
    }
}

impl Page {
    /// When something was lost, and why.
    fn tell(&self, why: &str) -> String {
        format!("{:.3} s, {}: {why}", self.began.elapsed().as_secs_f64(), self.chapter)
    }
}

struct Member {
    server: SocketAddr,
    backend: String,
    answers: u64,
    given_up: bool,
    is_veteran: bool,
}

impl Ledger {
    fn open(&self) -> MutexGuard<'_, Page> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection broke.
    pub fn note_broken(&self, why: &str) {
        let mut page = self.open();
        let what = page.tell(why);
        page.broken.push(what);
    }

    /// A connection never had an answer.
    pub fn note_refused(&self, why: &str) {
        let mut page = self.open();
        let what = page.tell(why);
        page.refused.push(what);
    }

    /// A member joins: it has had its first answer. Returns its number.
    fn join(&self, server: SocketAddr, backend: &str) -> u64 {
        let mut page = self.open();
        let id = page.served;
        page.served += 1;
        let given_up = page.given_up.contains(backend);
        let backend = backend.to_owned();
        page.members.insert(id, Member { server, backend, answers: 1, given_up, is_veteran: false });
        id
    }

    /// A member was answered. Returns whether it is to leave.
    fn note_answer(&self, id: u64) -> bool {
        let mut page = self.open();
        let Page { members, left, ends, .. } = &mut *page;
        let member = members.get_mut(&id).expect("who is answered has joined");
        member.answers += 1;
        *ends || left.contains(&member.backend)
    }

    /// A member's connection has ended; how is said if it was not as it should be.
    fn note_end(&self, id: u64, end: Result<()>) {
        let mut page = self.open();
        let Member { server, backend, answers, given_up, .. } =
            page.members.remove(&id).expect("who ends has joined");
        drop(page);
        if let (Err(error), false) = (end, given_up) {
            self.note_broken(&format!("with {backend} of {server}, after {answers} answers: {error:#}"));
        }
    }

    /// A visitor was served and is gone, or should be.
    fn note_visit(&self, server: SocketAddr, backend: &str, end: Result<()>) {
        let mut page = self.open();
        page.served += 1;
        let given_up = page.given_up.contains(backend);
        drop(page);
        if let (Err(error), false) = (end, given_up) {
            self.note_broken(&format!("a visitor of {backend} of {server}: {error:#}"));
        }
    }
}

fn run(servers: &[SocketAddr], size: usize, visits: Duration, ledger: &Ledger) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        let doors = Arc::new(Semaphore::new(DOORS));
        let mut crowd = JoinSet::new();
        for &server in servers {
            crowd.spawn(visit_all_the_time(server, visits, ledger.clone()));
            for _ in 0..size {
                crowd.spawn(keep_place(server, ledger.clone(), doors.clone()));
            }
        }
        while let Some(ended) = crowd.join_next().await {
            ended.context("one of the crowd panicked")?;
        }
        Ok(())
    })
}

/// One place in the crowd: whoever leaves it is followed by another.
async fn keep_place(server: SocketAddr, ledger: Ledger, doors: Arc<Semaphore>) {
    while !ledger.open().ends {
        let door = doors.acquire().await.expect("the doors are never closed");
        let Some(connection) = Connection::open(server, &ledger).await else {
            sleep(PAUSE).await;
            continue;
        };
        drop(door);
        let id = ledger.join(server, connection.backend());
        let end = stay(connection, id, &ledger).await;
        ledger.note_end(id, end);
    }
}

async fn stay(mut connection: Connection, id: u64, ledger: &Ledger) -> Result<()> {
    loop {
        sleep(PAUSE).await;
        connection.ask_again().await?;
        if ledger.note_answer(id) {
            return connection.close().await;
        }
    }
}

/// Visitors come one by one, whether or not those before have been served.
async fn visit_all_the_time(server: SocketAddr, visits: Duration, ledger: Ledger) {
    let mut clock = interval(visits);
    let mut visitors = JoinSet::new();
    while !ledger.open().ends {
        clock.tick().await;
        visitors.spawn(visit(server, ledger.clone()));
        while visitors.try_join_next().is_some() {}
    }
    visitors.join_all().await;
}

async fn visit(server: SocketAddr, ledger: Ledger) {
    if let Some(connection) = Connection::open(server, &ledger).await {
        let backend = connection.backend().to_owned();
        ledger.note_visit(server, &backend, connection.close().await);
    }
}

/// A connection that had an answer, which must stay the same.
struct Connection {
    stream: BufReader<TcpStream>,
    answer: String,
}

impl Connection {
    /// A failure is noted, unless newcomers may fail.
    async fn open(server: SocketAddr, ledger: &Ledger) -> Option<Self> {
        let may_fail = ledger.open().newcomers_may_fail;
        let opened = Self::try_open(server).await;
        if let (Err(error), false) = (&opened, may_fail) {
            ledger.note_refused(&format!("a newcomer to {server}: {error:#}"));
        }
        opened.ok()
    }

    async fn try_open(server: SocketAddr) -> Result<Self> {
        let stream = timeout(SOON, TcpStream::connect(server)).await.context("no connection in time")??;
        stream.set_nodelay(true)?;
        let mut connection = Self { stream: BufReader::new(stream), answer: String::new() };
        connection.answer = connection.ask().await?;
        Ok(connection)
    }

    fn backend(&self) -> &str {
        self.answer.split(' ').next().unwrap_or_default()
    }

    async fn ask_again(&mut self) -> Result<()> {
        let answer = self.ask().await?;
        ensure!(answer == self.answer, "the answer became {answer:?}");
        Ok(())
    }

    async fn ask(&mut self) -> Result<String> {
        let asking = async {
            let mut answer = String::new();
            self.stream.write_all(b"who are you\n").await.context("cannot ask")?;
            self.stream.read_line(&mut answer).await.context("no answer")?;
            ensure!(answer.ends_with('\n'), "the connection was closed");
            Ok(answer)
        };
        timeout(SOON, asking).await.context("no answer in time")?
    }

    /// Closes it, which the server has to follow.
    async fn close(mut self) -> Result<()> {
        let closing = async {
            self.stream.shutdown().await.context("cannot close")?;
            let left = self.stream.read(&mut [0]).await.context("not closed by the server")?;
            ensure!(left == 0, "more was said than was asked");
            Ok(())
        };
        timeout(SOON, closing).await.context("not closed in time")?
    }
}
