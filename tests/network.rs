//! Below TCP: packets lost, swallowed, refused. Rules of nftables for the one port of each stand-in, so root is needed; nothing
//! happens unless `PROOF_NETWORK` says how many rounds.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    proof::{SUBJECTS, Scene, Setting, Tally, amount},
    support::{not_proved, side_by_side},
};

/// Some thirty pages in about two seconds.
const SETTING: Setting = Setting { requests_per_second: 200, in_flight: 2, latency_ms: 60, faults: 0.0, kills: 0 };
/// Impatient, so that a hang is noticed within a test.
const LIMITS: &str = "requests_per_second = 200\nin_flight = 2\nconnect_timeout_s = 2\nfirst_byte_timeout_s = 3\nstall_timeout_s = 3\noutage_s = 120";

/// What happens to the packets of a port.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    /// For messages.
    name: &'static str,
    /// What is done to packets that match: to the server, and to the client; empty for nothing.
    to_server: &'static str,
    to_client: &'static str,
    /// For how long.
    lasting: Duration,
}

/// Everything that is tried. A later trouble is a row.
const TROUBLES: [Trouble; 6] = [
    Trouble {
        name: "a fifth of all packets is lost, both ways",
        to_server: "numgen random mod 100 < 20 counter drop",
        to_client: "numgen random mod 100 < 20 counter drop",
        lasting: Duration::from_secs(600),
    },
    Trouble {
        name: "a black hole",
        to_server: "counter drop",
        to_client: "counter drop",
        lasting: Duration::from_secs(9),
    },
    Trouble {
        name: "no answer comes through",
        to_server: "",
        to_client: "counter drop",
        lasting: Duration::from_secs(9),
    },
    Trouble {
        name: "the line goes dead in the middle of a response",
        to_server: "",
        to_client: "quota over 6000 bytes counter drop",
        lasting: Duration::from_secs(9),
    },
    Trouble {
        name: "a firewall resets",
        to_server: "counter reject with tcp reset",
        to_client: "",
        lasting: Duration::from_secs(4),
    },
    Trouble {
        name: "the host is unreachable",
        to_server: "counter reject with icmp type host-unreachable",
        to_client: "",
        lasting: Duration::from_secs(4),
    },
];

/// Rules that hold until they are dropped.
#[derive(Debug)]
struct Rules(String);

impl Rules {
    fn new(trouble: Trouble, port: u16) -> Self {
        let table = format!("harvester_test_{port}");
        let mut script =
            format!("add table ip {table}\nadd chain ip {table} in {{ type filter hook input priority 0; }}\n");
        for (side, verdict) in [("dport", trouble.to_server), ("sport", trouble.to_client)] {
            if !verdict.is_empty() {
                script += &format!("add rule ip {table} in tcp {side} {port} {verdict}\n");
            }
        }
        let rules = Rules(table);
        assert!(nft(&script), "{script}");
        rules
    }
}

impl Rules {
    /// Whether each of them has met a packet.
    fn have_all_met_packets(&self) -> bool {
        let listed = Command::new("nft").args(["list", "table", "ip", &self.0]).output().unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        text.contains("counter packets") && !text.contains("counter packets 0 ")
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        nft(&format!("delete table ip {}\n", self.0));
    }
}

/// Whether nftables takes these commands.
fn nft(script: &str) -> bool {
    let Ok(mut nft) = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn() else { return false };
    nft.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    nft.wait().unwrap().success()
}

#[test]
fn whatever_happens_to_packets_the_run_goes_on_by_itself_and_the_file_is_the_same() {
    let rounds = amount("network", 0);
    if rounds == 0 {
        not_proved("needs root and nftables; tests/prove has them");
        return;
    }
    let trials = Tally::default();
    let cases = (0..rounds).flat_map(|round| TROUBLES.map(|trouble| (round, trouble))).collect();
    side_by_side(cases, TROUBLES.len(), |(round, trouble): (u64, Trouble)| {
        let what = format!("{}, round {round}", trouble.name);
        let scene = Scene::new(&SUBJECTS[0], |server| server.latency(SETTING.latency()));
        let port = scene.server.url().rsplit(':').next().unwrap().parse().unwrap();
        let trial = scene.trial(LIMITS);
        let mut child = trial.command(&[], &["-qq", "run", "job.toml"]).stdout(Stdio::null()).spawn().unwrap();
        let asked = usize::try_from(4 + 5 * (round % 5)).unwrap();
        assert!(scene.server.ledger().wait_until(Duration::from_secs(60), |seen| seen.len() > asked), "{what}");
        let rules = Rules::new(trouble, port);
        for _ in 0..trouble.lasting.as_secs() {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            scene.server.ledger().wait_until(Duration::from_secs(1), |_| false);
        }
        let ended_in_trouble = child.try_wait().unwrap().is_some();
        assert!(rules.have_all_met_packets(), "{what}: nothing happened");
        drop(rules);
        // What is lost now and then is outlived; what is gone is waited for.
        assert_eq!(
            ended_in_trouble,
            trouble.lasting > Duration::from_secs(60),
            "{what}: ended before it was over, or not"
        );
        assert_eq!(child.wait().unwrap().code(), Some(0), "{what}");
        trial.assert_exact(&what);
        let peak = scene.server.ledger().max_in_window(Duration::from_secs(1));
        assert!(peak <= SETTING.requests_per_second, "{what}: {peak} requests in one second");
        trials.count();
    });
    trials.tell("network", "packets lost, swallowed, cut off, refused");
}
