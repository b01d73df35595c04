//! What can be found wrong: every kind with its id and severity, from one list. What each means and how to mend it is in
//! docs/doctor.md, a section for each id.

use std::fmt;

/// How bad a finding is; the worst comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Clients are not served, or not as configured.
    Error,
    /// It works, but slower or less surely than it could, or it will break.
    Warning,
    /// Good to know.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $severity:ident;)*) => {
        /// What is wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What scripts and the documentation know it by.
            pub fn id(self) -> &'static str {
                match self { $(Self::$name => $id,)* }
            }

            /// How bad it is.
            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }
        }
    };
}

kinds! {
    /// This process may not do what the daemon has to.
    Privileges = "privileges", Error;
    /// The kernel does not take the program.
    ProgramRefused = "program-refused", Error;
    /// The kernel interprets programs.
    JitOff = "jit-off", Warning;
    /// An interface is not there or cannot carry the program.
    NoInterface = "no-interface", Error;
    /// Another XDP program runs on an interface.
    OtherProgram = "other-program", Error;
    /// The program runs in the network stack.
    GenericMode = "generic-mode", Warning;
    /// Packets are merged before the program sees them.
    MergedPackets = "merged-packets", Warning;
    /// VLAN tags are taken off before the program sees them.
    VlanOffload = "vlan-offload", Warning;
    /// Fewer receive queues are in use than could be.
    FewQueues = "few-queues", Note;
    /// A kernel setting is missing without which no client is served.
    SettingFatal = "setting-fatal", Error;
    /// A kernel setting is missing.
    Setting = "setting", Warning;
    /// A firewall drops what the kernel forwards.
    FirewallDrops = "firewall-drops", Warning;
    /// Sockets of this machine get the ports of `snat_ports`.
    PortsShared = "ports-shared", Error;
    /// Nobody knows where packets for a backend go.
    NextHopUnresolved = "next-hop-unresolved", Error;
    /// Outer headers do not fit on the way to a backend.
    MtuTooSmall = "mtu-too-small", Warning;
    /// More than one host answers for an address.
    AddressTwice = "address-twice", Error;
    /// A backend answers for the VIP on its link.
    VipNotQuiet = "vip-not-quiet", Error;
    /// Nobody listens at the daemon's socket.
    DaemonNotRunning = "daemon-not-running", Error;
    /// The daemon does not answer.
    DaemonHung = "daemon-hung", Error;
    /// The daemon's maps are behind its state.
    MapsBehind = "maps-behind", Error;
    /// The daemon's maps are not what it wrote.
    TablesDiffer = "tables-differ", Error;
    /// The last reload was refused.
    ReloadRefused = "reload-refused", Warning;
    /// What the operator said is lost, or would be at the next restart.
    WordsNotKept = "words-not-kept", Warning;
    /// The daemon is not of this command's version.
    VersionDiffers = "version-differs", Warning;
    /// There was no room to remember flows.
    FlowsNotRemembered = "flows-not-remembered", Warning;
    /// There is little room left to remember flows.
    FlowsNearlyFull = "flows-nearly-full", Warning;
    /// The daemon may open too few files.
    FewOpenFiles = "few-open-files", Warning;
    /// A backend is down.
    BackendDown = "backend-down", Warning;
    /// The reply of a backend goes past the balancer.
    ReplyPastBalancer = "reply-past-balancer", Error;
    /// A backend does not answer what the program sends it.
    ProbeUnanswered = "probe-unanswered", Error;
    /// Something could not be looked at.
    CannotTell = "cannot-tell", Note;
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: Kind,
    /// Where: an interface, a backend, a setting.
    pub place: String,
    /// What was seen there.
    pub seen: String,
    /// What would mend it: a command where there is one.
    pub remedy: Option<String>,
}

impl Finding {
    /// Something that was found at a place.
    pub fn new(kind: Kind, place: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { kind, place: place.into(), seen: seen.into(), remedy: None }
    }

    /// It, with what would mend it.
    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        path::{Path, PathBuf},
    };

    use super::*;

    #[test]
    fn each_kind_has_a_section_of_its_own_in_the_documentation() {
        let text = include_str!("../../../docs/doctor.md");
        let sections: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("### ")).collect();
        let ids: Vec<&str> = Kind::ALL.iter().map(|kind| kind.id()).collect();
        assert_eq!(sections, ids, "sections are in the order of the code");
        assert_eq!(BTreeSet::from_iter(&ids).len(), ids.len());
    }

    #[test]
    fn each_kind_is_made_and_seen_by_a_traffic_test() {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
        let stories = fs::read_dir(tests.join("doctor")).expect("it is there");
        let stories = stories.map(|story| story.expect("it can be read").path());
        let read = |path: PathBuf| fs::read_to_string(path).expect("it can be read");
        let made: String = stories.chain([tests.join("doctor.rs")]).map(read).collect();
        let is_made = |kind: &Kind| made.contains(&format!("(\"{}\", ", kind.id()));
        let unmade: Vec<_> = Kind::ALL.iter().filter(|kind| !is_made(kind)).collect();
        assert_eq!(unmade, [] as [&Kind; 0]);
    }
}
