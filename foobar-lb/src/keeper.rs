//! Has the operator's words written whenever they have changed, one writing after the other and beside the daemon's task,
//! which a slow disk is not to stop. What cannot be written counts all the same until the daemon ends; it is said, and
//! tried again.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{sync::mpsc, task::spawn_blocking};
use tracing::{debug, error, info, warn};

use crate::{
    daemon::Event,
    start::chain,
    state::{State, Words},
    words,
};

/// How long after a failure the words are written again.
const RETRY: Duration = Duration::from_secs(5);

/// Told when the words are on the disk, or why they are not.
type Done = Box<dyn FnOnce(Option<String>) + Send>;

/// Where the words are kept.
pub struct Keeper {
    /// Why what was said before this daemon started does not count any more.
    pub lost: Option<String>,
    /// Why what is said would not outlive this daemon.
    pub failure: Option<String>,
    state_path: PathBuf,
    /// What the file has, or will have when all that is under way is written.
    last: Words,
    under_way: usize,
    /// When the last writing ended.
    ended: Instant,
    writings: Option<mpsc::UnboundedSender<Writing>>,
}

struct Writing {
    words: Words,
    done: Done,
}

impl Keeper {
    /// Gives the state the words that were kept; what they are about and is not there any more is forgotten.
    pub fn recall(state_path: PathBuf, state: &mut State) -> Self {
        let (words, lost) = match words::load(&state_path) {
            Ok(words) => (words, None),
            Err(error) => {
                let lost = chain(&error);
                error!("what was said of backends and services before does not count any more: {lost}");
                (Words::default(), Some(lost))
            }
        };
        let last = words.clone();
        for gone in state.recall(words) {
            warn!("what was said of {gone} is forgotten: the configuration has it no more");
        }
        let lapsed = state.lapse(Timestamp::now());
        lapsed.iter().for_each(|word| info!("its time is over: {word}"));
        let Words { services, backends } = state.words();
        if !services.is_empty() || !backends.is_empty() {
            info!(services = services.len(), backends = backends.len(), "what was said before counts again");
        }
        Self { lost, failure: None, state_path, last, under_way: 0, ended: Instant::now(), writings: None }
    }

    /// Writes what it is given from now on, for as long as this is kept.
    pub fn start(&mut self, events: mpsc::Sender<Event>) -> impl Future<Output = ()> + use<> {
        let (sender, mut writings) = mpsc::unbounded_channel::<Writing>();
        self.writings = Some(sender);
        let state_path = self.state_path.clone();
        async move {
            while let Some(Writing { words, done }) = writings.recv().await {
                let path = state_path.clone();
                let Ok(stored) = spawn_blocking(move || words::store(&path, &words)).await else { return };
                let failure = stored.err().map(|error| {
                    let state_path = state_path.display();
                    format!("the operator's words cannot be kept in {state_path}: {error}")
                });
                done(failure.clone());
                if events.send(Event::Kept(failure)).await.is_err() {
                    debug!("the daemon ends before it knows that its words are kept");
                    return;
                }
            }
        }
    }

    /// Has the words written if they are not the last, and then tells `done`.
    pub fn keep(&mut self, words: Words, done: impl FnOnce(Option<String>) + Send + 'static) {
        if words == self.last && self.failure.is_none() && self.under_way == 0 {
            return done(None);
        }
        self.last = words.clone();
        let writing = Writing { words, done: Box::new(done) };
        match self.writings.as_ref().map(|writings| writings.send(writing)) {
            Some(Ok(())) => self.under_way += 1,
            // The task has ended, and with it whoever waits for an answer.
            _ => debug!("the words are not written any more"),
        }
    }

    /// Whether a writing that failed is to be tried again.
    pub fn is_due(&self, now: Instant) -> bool {
        self.failure.is_some() && self.under_way == 0 && now.duration_since(self.ended) >= RETRY
    }

    /// A writing has ended.
    pub fn note(&mut self, failure: Option<String>) {
        self.under_way = self.under_way.saturating_sub(1);
        self.ended = Instant::now();
        if failure != self.failure {
            match &failure {
                Some(why) => {
                    error!("{why}; what is said counts until foobar-lb ends, and is not known after that")
                }
                None => info!("the operator's words are kept again"),
            }
        }
        self.failure = failure;
    }
}
