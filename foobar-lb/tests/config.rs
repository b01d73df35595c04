//! Every configuration in `tests/config` against the text beside it: the errors or, where it is accepted, the
//! warnings. `UPDATE=1` rewrites the texts. Then the reference configuration, and files that are no text.

use std::{
    env, fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use foobar_lb::{
    config::{self, Config, Error},
    model::{Encapsulation, Mode, Mss, Pool, Tunnel, Unmatched, Vip},
};
use nix::{sys::stat::Mode as Permissions, unistd::mkfifo};
use proptest::prelude::*;
use tempfile::TempDir;

#[test]
fn messages_are_as_expected() {
    let update = env::var_os("UPDATE").is_some();
    let mut inputs: Vec<PathBuf> = fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    inputs.sort();
    assert!(inputs.len() > 10, "the inputs are there");
    let mut wrong = Vec::new();
    for input in inputs {
        let actual = messages(&input);
        let expected = input.with_extension("txt");
        if update {
            fs::write(&expected, &actual).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != actual {
            wrong.push(format!("{}:\n{actual}", input.display()));
        }
    }
    assert!(wrong.is_empty(), "not as expected; UPDATE=1 accepts:\n\n{}", wrong.join("\n"));
}

#[test]
fn the_reference_shows_the_defaults() {
    let minimal = r#"
        [[service]]
        name = "www"
        address = "203.0.113.80:80"
        backend = [
            { name = "web1", address = "10.0.1.11:80" },
            { name = "web2", address = "10.0.1.12:80" },
        ]
        [[service]]
        name = "app"
        address = "203.0.113.81:8080"
        health = { kind = "http" }
        backend = [{ name = "app1", address = "10.0.2.11:8080" }]
        [[service]]
        name = "media"
        address = "203.0.113.82:443"
        mode = "tunnel"
        backend = [
            { name = "media1", address = "10.0.4.11:443" },
            { name = "media2", address = "[2001:db8:4::12]:443" },
        ]
        [[service]]
        name = "h3"
        address = "203.0.113.80:443"
        protocol = "udp"
        udp_drain = "switch"
        health = { kind = "none" }
        quic = { server_id_length = 2 }
        backend = [
            { name = "h3-1", address = "10.0.5.11:443", quic_id = "0a01" },
            { name = "h3-2", address = "10.0.5.12:443", quic_id = "0A02" },
        ]
        [[service]]
        name = "legacy"
        address = "203.0.113.83:80"
        mode = "snat"
        backend = [
            { name = "legacy1", address = "10.0.6.11:8080" },
            { name = "legacy2", address = "[2001:db8:6::12]:8080" },
        ]
    "#;
    let reference = accept(&reference());
    assert!(reference.warnings.is_empty(), "{}", reference.warnings);
    assert_eq!(reference, accept(minimal));
    assert_eq!(reference.daemon.seed, None);
    assert_eq!(reference.metrics_listen, None);
}

#[test]
fn the_examples_of_the_reference_are_valid() {
    let examples = accept(&with_examples(&reference()));
    assert_eq!(examples.daemon.seed, Some(0x9f3c_51d2_0b7e_8a46));
    assert_eq!(examples.metrics_listen, Some(config::DEFAULT_METRICS_LISTEN));
    assert_eq!(examples.services[0].direct.len(), 1);
    assert_eq!(examples.services[0].mss, Some(Mss::Auto));
    let sources = ["172.16.0.0/16", "fd00:5::/64"].map(|prefix| prefix.parse().unwrap()).to_vec();
    let tunnel = Tunnel { encapsulation: Encapsulation::Gue(6080), sources };
    assert_eq!(examples.services[2].mode, Mode::Tunnel(tunnel));
    let addresses = ["10.0.6.1", "10.0.6.2", "2001:db8:6::1"].map(|ip| ip.parse().unwrap()).to_vec();
    let pool = Pool { addresses, ports: 1024..=32_767 };
    assert_eq!(examples.services[4].mode, Mode::Snat(pool));
}

#[test]
fn an_outer_source_may_be_one_address() {
    let config = accept(&service_in("tunnel", "outer_source = [\"10.0.1.1\"]"));
    let sources = vec!["10.0.1.1/32".parse().unwrap()];
    assert_eq!(config.services[0].mode, Mode::Tunnel(Tunnel { encapsulation: Encapsulation::Ipip, sources }));
}

#[test]
fn gue_has_a_port_of_its_own() {
    let config = accept(&service_in("tunnel", "encapsulation = \"gue\""));
    let encapsulation = Encapsulation::Gue(6080);
    assert_eq!(config.services[0].mode, Mode::Tunnel(Tunnel { encapsulation, sources: vec![] }));
}

#[test]
fn what_backends_have_to_do_is_noted() {
    let notes = |text: &str| accept(text).notes();
    assert_eq!(notes(&service_in("nat", "")), Vec::<String>::new());
    let expected = [
        ("dsr", "", "(dsr): its backends have to be on a link of the balancer and have the VIP", " --dsr"),
        ("tunnel", "", "(tunnel): its backends have to take the outer headers off and have the VIP", ""),
        ("tunnel", "encapsulation = \"gue\"\ngue_port = 6081", "(tunnel): ", " --gue-port 6081"),
    ];
    for (mode, keys, duty, flag) in expected {
        let notes = notes(&service_in(mode, keys));
        let command = format!("`foobar-lb decap IFACE --vip 203.0.113.80{flag}`");
        assert!(notes.len() == 1 && notes[0].contains(duty) && notes[0].ends_with(&command), "{notes:?}");
    }
}

#[test]
fn what_quic_servers_have_to_do_is_noted() {
    let notes = accept(&reference()).notes();
    let note = notes.iter().find(|note| note.starts_with("service `h3` (quic): ")).expect("it is there");
    assert!(note.contains("the bits 000") && note.contains("2 bytes"), "{note}");
}

#[test]
fn a_vip_is_the_same_for_all_services_on_it() {
    let service = |name: &str, address: &str, backend: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{address}\"\n\
             backend = [{{ name = \"b\", address = \"{backend}\" }}]\n"
        )
    };
    let services = [
        service("http", "203.0.113.80:80", "10.0.1.11:80"),
        service("https", "203.0.113.80:443", "10.0.1.11:443"),
        service("other", "203.0.113.81:80", "10.0.1.12:80"),
    ];
    let vip = "[[vip]]\naddress = \"203.0.113.80\"\nunmatched = \"drop\"\nping = false\n";
    let vips = accept(&(vip.to_owned() + &services.concat())).services.into_iter().map(|service| service.vip);
    let said = Vip { unmatched: Unmatched::Drop, ping: false };
    let default = Vip { unmatched: config::DEFAULT_UNMATCHED, ping: config::DEFAULT_PING };
    assert_eq!(Vec::from_iter(vips), [said, said, default]);
}

#[test]
fn udp_has_defaults_of_its_own() {
    let udp = accept(
        r#"
        [metrics]
        [[service]]
        name = "dns"
        address = "[2001:db8::53]:53"
        protocol = "udp"
        backend = [{ name = "dns1", address = "[2001:db8:1::53]:53" }]
    "#,
    );
    assert_eq!(udp.services[0].transition, config::DEFAULT_UDP_TRANSITION);
    assert_eq!(udp.services[0].health.kind, foobar_lb::health::Kind::None);
    assert_eq!(udp.metrics_listen, Some(config::DEFAULT_METRICS_LISTEN));
    assert_eq!(udp.warnings.shown.len(), 1);
}

#[test]
fn a_timeout_follows_a_shorter_interval() {
    let text =
        reference().replace("interval = \"2s\"", "interval = \"200ms\"").replace("timeout = \"1s\"", "");
    assert_eq!(accept(&text).services[0].health.timeout, Duration::from_millis(200));
}

#[test]
fn what_cannot_be_read_is_refused_by_its_name() {
    let directory = TempDir::new().unwrap();
    let missing = directory.path().join("missing.toml");
    for (path, reason) in [(missing.as_path(), "No such file"), (directory.path(), "Is a directory")] {
        let error = config::load(path).unwrap_err();
        assert!(matches!(error, Error::Unreadable { .. }));
        let text = error.to_string();
        assert!(text.starts_with(&path.display().to_string()) && text.contains(reason), "{text}");
    }
    let fifo = directory.path().join("fifo.toml");
    mkfifo(&fifo, Permissions::S_IRUSR | Permissions::S_IWUSR).unwrap();
    for path in [Path::new("/dev/zero"), &fifo] {
        let error = config::load(path).unwrap_err();
        assert!(matches!(error, Error::NotAFile { .. }), "{error}");
    }
    let endless = directory.path().join("endless.toml");
    fs::File::create(&endless).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(config::load(&endless), Err(Error::TooLarge { .. })));
}

#[test]
fn a_file_that_changes_while_it_is_read_is_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("changing.toml");
    fs::write(&path, format!("# {}", "a".repeat(8 << 20))).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                file.write_all_at(b"# ", 0).unwrap();
            }
        });
        let refused = (0..100).any(|_| matches!(config::load(&path), Err(Error::Changing { .. })));
        ends.store(true, Ordering::Relaxed);
        assert!(refused, "it changed all the time");
    });
    assert!(config::read(&path).is_ok(), "it does not change any more");
}

#[test]
fn a_pipe_is_read_where_once_is_enough() {
    let directory = TempDir::new().unwrap();
    let fifo = directory.path().join("fifo.toml");
    mkfifo(&fifo, Permissions::S_IRUSR | Permissions::S_IWUSR).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| fs::write(&fifo, "[daemon]\n").unwrap());
        assert_eq!(config::read_once(&fifo).unwrap(), "[daemon]\n");
    });
}

#[test]
fn the_first_byte_that_is_no_text_is_named() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("latin1.toml");
    fs::write(&path, b"[daemon]\n# \xc3\xa9t\xe9\n").unwrap();
    let error = config::load(&path).unwrap_err();
    assert!(matches!(error, Error::NotUtf8 { line: 2, column: 5, .. }), "{error}");
}

#[test]
fn a_large_file_is_refused_briefly() {
    let service = |number: u32| {
        let [_, a, b, c] = number.to_be_bytes();
        format!(
            "[[service]]\nname = \"s{number}\"\naddress = \"203.{a}.{b}.{c}:80\"\n\
             [[service.backend]]\nname = \"b\"\naddress = \"10.{a}.{b}.{c}:80\"\n"
        )
    };
    // What is slow at a tenth of the size is slow at the whole; a debug build is that much slower.
    let scale = if cfg!(debug_assertions) { 1 } else { 10 };
    let services: String = (1..5_000 * scale).map(service).collect();
    let message = refuse_briefly(&format!("{services}{services}"));
    assert!(message.contains("already") && message.contains("... and "), "{message}");
    refuse_briefly(&(0..60_000 * scale).map(|key| format!("key{key} = 1\n")).collect::<String>());
    let million = 1_000_000 * scale as usize;
    refuse_briefly(&"x\n".repeat(million / 2));
    refuse_briefly(&"[".repeat(million));
    refuse_briefly(&"a = [".repeat(million / 5));
    refuse_briefly(&format!("{} = 1", "k".repeat(million)));
    refuse_briefly(&format!("[[service]]\nname = \"{}\"", "k".repeat(million)));
    refuse_briefly(&format!("[[service]]\naddress = \"{}\"", "1:".repeat(million / 2)));
}

/// What is said of `text`; the time allowed is that of a debug build on a busy machine.
fn refuse_briefly(text: &str) -> String {
    let message = config::parse(text, "large.toml").expect_err("refused").to_string();
    assert!(message.len() < 64 << 10, "{} bytes of message", message.len());
    message
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is in the file, there is an answer, and it names a place.
    #[test]
    fn no_text_breaks_it(edits in edits()) {
        let mut characters: Vec<char> = with_examples(&reference()).chars().collect();
        for (place, removed, inserted) in edits {
            let start = place.index(characters.len());
            let end = (start + removed).min(characters.len());
            characters.splice(start..end, inserted.chars());
        }
        let text: String = characters.into_iter().collect();
        if let Err(error) = config::parse(&text, "edited.toml") {
            prop_assert!(error.to_string().starts_with("edited.toml:"), "{error}");
        }
    }
}

/// Where characters of a text are replaced, how many, and by what.
fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, usize, String)>> {
    prop::collection::vec((any::<prop::sample::Index>(), 0..8usize, ".{0,3}"), 1..6)
}

fn service_in(mode: &str, keys: &str) -> String {
    format!(
        "[[service]]\nname = \"www\"\naddress = \"203.0.113.80:80\"\nmode = \"{mode}\"\n{keys}\n\
         backend = [{{ name = \"web1\", address = \"10.0.1.11:80\" }}]\n"
    )
}

fn accept(text: &str) -> Config {
    config::parse(text, "test.toml").unwrap_or_else(|error| panic!("{error}"))
}

/// What `check` says of a file.
fn messages(input: &Path) -> String {
    let text = fs::read_to_string(input).expect("the input is text");
    let name = input.file_name().expect("the input is a file").to_string_lossy();
    match config::parse(&text, &name) {
        Ok(config) => format!("accepted\n\n{}\n", config.warnings),
        Err(error) => format!("{error}\n"),
    }
}

fn reference() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/foobar-lb.toml");
    fs::read_to_string(path).expect("the reference is there")
}

/// The reference with its commented keys in force, in place of the default where there is one.
fn with_examples(reference: &str) -> String {
    let is_example = |line: &str| line.starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
    let uncommented =
        reference.lines().map(|line| line.strip_prefix('#').filter(|rest| is_example(rest)).unwrap_or(line));
    let replaced = ["direct = []", "encapsulation = \"ipip\""];
    uncommented.filter(|line| !replaced.contains(line)).collect::<Vec<_>>().join("\n")
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config")
}
