//! What the file looks like: its sections and keys, each value with its place. A key that is absent is
//! `None`; what it then stands for, and whether a value makes sense, is left to those who read the sections.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};
use serde_aux::serde_introspection::serde_introspect;
use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    report::{Problem, Problems},
    values::nearest,
};

pub(super) type Text = Option<Spanned<String>>;
pub(super) type Number = Option<Spanned<Integer>>;
pub(super) type Flag = Option<bool>;
/// A list of its own place, so that one that has no effect can be pointed at.
pub(super) type Texts = Option<Spanned<Vec<Spanned<String>>>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct File {
    #[serde(default)]
    pub(super) daemon: Daemon,
    pub(super) metrics: Option<Metrics>,
    #[serde(default)]
    pub(super) vip: Vec<Spanned<Vip>>,
    #[serde(default)]
    pub(super) service: Vec<Spanned<Service>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Daemon {
    pub(super) socket: Text,
    pub(super) socket_group: Text,
    pub(super) read_only_socket: Text,
    pub(super) state_path: Text,
    pub(super) pin_path: Text,
    pub(super) seed: Text,
    pub(super) slots: Number,
    pub(super) backends: Number,
    pub(super) flows: Number,
    pub(super) half_open: Number,
    pub(super) mappings: Number,
    pub(super) snat_ports: Text,
    pub(super) max_moved: Text,
    pub(super) watch: Flag,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Metrics {
    pub(super) listen: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Vip {
    pub(super) address: Text,
    pub(super) unmatched: Text,
    pub(super) ping: Flag,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Service {
    pub(super) name: Text,
    pub(super) address: Text,
    pub(super) protocol: Text,
    pub(super) mode: Text,
    pub(super) encapsulation: Text,
    pub(super) gue_port: Number,
    pub(super) outer_source: Texts,
    pub(super) snat: Text,
    pub(super) snat_source: Texts,
    pub(super) affinity: Text,
    pub(super) mss: Option<Spanned<Size>>,
    pub(super) table_size: Number,
    pub(super) transition: Text,
    pub(super) idle: Text,
    pub(super) drain_time: Text,
    pub(super) udp_drain: Text,
    pub(super) remember: Text,
    pub(super) direct: Texts,
    pub(super) announce: Flag,
    pub(super) when_empty: Text,
    pub(super) max_moved: Text,
    pub(super) quic: Option<Spanned<Quic>>,
    pub(super) health: Option<Health>,
    #[serde(default)]
    pub(super) backend: Vec<Spanned<Backend>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Quic {
    pub(super) server_id_length: Number,
    pub(super) config_rotation: Number,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Health {
    pub(super) kind: Text,
    pub(super) port: Number,
    pub(super) path: Text,
    pub(super) host: Text,
    pub(super) status: Text,
    pub(super) body: Text,
    pub(super) interval: Text,
    pub(super) timeout: Text,
    pub(super) rise: Number,
    pub(super) fall: Number,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct Backend {
    pub(super) name: Text,
    pub(super) address: Text,
    pub(super) weight: Number,
    pub(super) quic_id: Text,
}

/// As TOML has them; a type of its own so that a wrong type is told in the words of TOML, not of Rust.
#[derive(Clone, Copy)]
pub(super) struct Integer(pub(super) i64);

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IntegerVisitor;

        impl Visitor<'_> for IntegerVisitor {
            type Value = Integer;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer of at most 64 bits")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Integer, E> {
                Ok(Integer(value))
            }
        }

        deserializer.deserialize_i64(IntegerVisitor)
    }
}

/// So many, or a word for what is found out.
pub(super) enum Size {
    Number(Integer),
    Word(String),
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;

        impl Visitor<'_> for SizeVisitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer or a string")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Size, E> {
                Ok(Size::Number(Integer(value)))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Size, E> {
                Ok(Size::Word(value.to_owned()))
            }
        }

        deserializer.deserialize_any(SizeVisitor)
    }
}

/// The file as its text has it; absent if the text is no TOML or has other keys or types than the shapes.
pub(super) fn parse(text: &str, problems: &mut Problems) -> Option<File> {
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        problems.error(problem(error));
    }
    if problems.has_errors() {
        return None;
    }
    check_keys(root.get_ref(), problems);
    if problems.has_errors() {
        return None;
    }
    File::deserialize(toml::de::Deserializer::from(root))
        .map_err(|error| problems.error(problem(&error)))
        .ok()
}

fn problem(error: &toml::de::Error) -> Problem {
    Problem::new(error.span().unwrap_or_default(), error.message())
}

/// Reports every unknown key and what was probably meant by it; serde would tell of the first one only.
fn check_keys(file: &DeTable<'_>, problems: &mut Problems) {
    check_names::<File>(file, problems);
    for daemon in tables(file, "daemon") {
        check_names::<Daemon>(daemon, problems);
    }
    for metrics in tables(file, "metrics") {
        check_names::<Metrics>(metrics, problems);
    }
    check_is_list(file, "vip", "[[vip]]", problems);
    for vip in tables(file, "vip") {
        check_names::<Vip>(vip, problems);
    }
    check_is_list(file, "service", "[[service]]", problems);
    for service in tables(file, "service") {
        check_names::<Service>(service, problems);
        for quic in tables(service, "quic") {
            check_names::<Quic>(quic, problems);
        }
        for health in tables(service, "health") {
            check_names::<Health>(health, problems);
        }
        check_is_list(service, "backend", "[[service.backend]]", problems);
        for backend in tables(service, "backend") {
            check_names::<Backend>(backend, problems);
        }
    }
}

fn check_names<'de, T: Deserialize<'de>>(table: &DeTable<'_>, problems: &mut Problems) {
    let known = serde_introspect::<T>();
    for (key, _) in table {
        let name = key.get_ref().as_ref();
        if !known.contains(&name) {
            let problem = Problem::new(key.span(), format!("unknown key `{name}`"));
            problems.error(problem.help(nearest(name, known)));
        }
    }
}

/// One pair of brackets too few is the likely slip here.
fn check_is_list(table: &DeTable<'_>, key: &str, header: &str, problems: &mut Problems) {
    if let Some(value) = table.get(key).filter(|value| value.get_ref().is_table()) {
        let message = format!("there may be several of `{key}`, so each is an element of a list");
        problems.error(Problem::new(value.span(), message).help(format!("begin it with `{header}`")));
    }
}

/// The table at `key`, or the tables in the list at `key`. What has another type is left to serde.
fn tables<'a>(table: &'a DeTable<'_>, key: &str) -> Vec<&'a DeTable<'a>> {
    match table.get(key).map(|value| value.get_ref()) {
        Some(DeValue::Table(table)) => vec![table],
        Some(DeValue::Array(list)) => list.iter().filter_map(|value| value.get_ref().as_table()).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: &str = include_str!("../../../config/foobar-lb.toml");

    #[test]
    fn every_key_is_in_the_reference() {
        let sections: [(&str, &[&str]); 8] = [
            ("", serde_introspect::<File>()),
            ("[daemon]", serde_introspect::<Daemon>()),
            ("[metrics]", serde_introspect::<Metrics>()),
            ("[[vip]]", serde_introspect::<Vip>()),
            ("[[service]]", serde_introspect::<Service>()),
            ("[service.quic]", serde_introspect::<Quic>()),
            ("[service.health]", serde_introspect::<Health>()),
            ("[[service.backend]]", serde_introspect::<Backend>()),
        ];
        for (section, keys) in sections {
            assert!(!keys.is_empty());
            for key in keys {
                assert!(shows(section, key), "{section} of the reference shows no `{key}`");
            }
        }
    }

    /// Whether a `section` of the reference has `key`, in force or commented out, as a value or a section.
    fn shows(section: &str, key: &str) -> bool {
        let mut current = "";
        REFERENCE.lines().map(|line| line.strip_prefix('#').unwrap_or(line)).any(|line| {
            if line.starts_with('[') {
                current = line;
                let parent = section.trim_matches(['[', ']']);
                let path = if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") };
                return line.trim_matches(['[', ']']) == path;
            }
            current == section && line.starts_with(&format!("{key} = "))
        })
    }
}
