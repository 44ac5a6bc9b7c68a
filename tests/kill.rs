//! `kill -9`, again and again, on one backup path that grows: a real process with a real mount dies at a
//! random moment in the middle of the work of several programs, and the next one finds everything that
//! was acknowledged, byte for byte, and of the rest what had been done up to one moment (invariants 1
//! and 3), in less than a second (recovery costs what was not committed, never the volume).
//!
//! Every third round works with the external volume away; some recoveries are killed too. The external
//! volume alone shows, at any time, what there was at one moment (invariant 2).
//!
//! `TIDEFS_KILL_ROUNDS` and `TIDEFS_KILL_SEED` set how often, and with which numbers. A seed repeats what
//! is tried, not the order of threads.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    missing_debug_implementations,
    reason = "a test fails by panicking"
)]

mod common;
#[path = "kill/history.rs"]
mod history;
#[path = "kill/oracle.rs"]
mod oracle;
#[path = "kill/served.rs"]
mod served;
#[path = "kill/writer.rs"]
mod writer;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use history::{Moment, Node, Paths, Version, judge, uncertain};
use served::{Served, can_mount, read_tree};
use writer::{Dice, Done, Ticks, Writer};

const ROUNDS: usize = 52;
const WRITERS: usize = 4;
/// A kill comes this long after the writers have begun, skewed towards the shorter.
const LIFE_MS: std::ops::Range<usize> = 50..1500;
/// A recovery is killed up to this long after it was started.
const RECOVERY_LIFE_MS: usize = 150;
/// Whatever the size of the volume.
const RECOVERY_MAX: Duration = Duration::from_secs(1);
/// So many fsyncs may a recovery wait for, when others keep the disk busy.
const RECOVERY_SYNCS: u32 = 20;
/// In other rounds, of the files that nobody touched this many are read.
const READ_AGAIN: usize = 250;
const EVERYTHING_EVERY: usize = 10;
const VIEW_EVERY: usize = 20;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn ms(count: usize) -> Duration {
    Duration::from_millis(count as u64)
}

/// What the kills met, and what opening cost.
#[derive(Debug, Default)]
struct Totals {
    kills: usize,
    kills_in_recovery: usize,
    with_unsent: usize,
    with_uncertain: usize,
    with_loss: usize,
    steps: usize,
    syncs: usize,
    lost: usize,
    frames_max: u64,
    recovery_ms_max: u64,
    checks: usize,
    views: usize,
}

struct Trial {
    served: Served,
    ticks: Ticks,
    dice: Dice,
    paths: Paths,
    /// What took effect before this moment must be there.
    floor: Moment,
    round_began: Moment,
    totals: Totals,
}

/// What one writer noted until its mount was gone.
struct Noted {
    paths: Paths,
    floor: Moment,
    done: Done,
}

impl Trial {
    fn new(seed: u64) -> Trial {
        Trial {
            served: Served::new(),
            ticks: Ticks::default(),
            dice: Dice::new(seed),
            paths: Paths::new(),
            floor: 0,
            round_began: 0,
            totals: Totals::default(),
        }
    }

    fn round(&mut self, round: usize) {
        self.served.set_away(round.is_multiple_of(3));
        if round.is_multiple_of(4) {
            self.kill_a_recovery();
        }
        self.recover(round, round.is_multiple_of(EVERYTHING_EVERY));
        if round.is_multiple_of(EVERYTHING_EVERY) {
            self.check(&["check", "--read-data"]);
        }
        let life = LIFE_MS.start + self.skewed(LIFE_MS.end - LIFE_MS.start);
        self.work_until_killed(round, life);
        let unsent = self.served.unsent_packs();
        let uncertain = uncertain(&self.paths, self.floor);
        self.totals.kills += 1;
        self.totals.with_unsent += usize::from(unsent > 0);
        self.totals.with_uncertain += usize::from(uncertain > 0);
        eprintln!(
            "round {round}: killed after {life} ms with {unsent} packs unsent and {uncertain} steps uncertain"
        );
        self.served.unmount_lazily();
        if round.is_multiple_of(VIEW_EVERY) {
            self.look_at_the_external_volume(0);
        }
    }

    /// More often near zero: the first moments after an opening are the busiest.
    fn skewed(&mut self, bound: usize) -> usize {
        self.dice.below(bound).min(self.dice.below(bound))
    }

    fn kill_a_recovery(&mut self) {
        let delay = self.dice.below(RECOVERY_LIFE_MS);
        self.served.spawn();
        thread::sleep(ms(delay));
        self.served.kill();
        self.served.unmount_lazily();
        self.totals.kills_in_recovery += 1;
    }

    /// Mounts what the last kill left, and holds it against what was noted.
    fn recover(&mut self, round: usize, read_all: bool) {
        let fsync_before = self.served.fsync_time();
        let status = self.served.mount();
        let fsync = fsync_before.max(self.served.fsync_time());
        let took_ms = status["recovery"]["took_ms"].as_u64().unwrap();
        assert!(
            Duration::from_millis(took_ms) < RECOVERY_MAX + RECOVERY_SYNCS * fsync,
            "round {round}: opening took {took_ms} ms, and an fsync {fsync:?}: {status}"
        );
        assert_eq!(status["failure"], Value::Null, "round {round}");
        assert_eq!(status["losses"], Value::Array(Vec::new()), "round {round}");
        let frames = status["recovery"]["frames"].as_u64().unwrap();
        self.totals.frames_max = self.totals.frames_max.max(frames);
        self.totals.recovery_ms_max = self.totals.recovery_ms_max.max(took_ms);

        let began = Instant::now();
        let tree = {
            let (paths, since) = (&self.paths, self.round_began);
            let share = (paths.len() / READ_AGAIN).max(1) as u64;
            let drawn = self.dice.roll();
            read_tree(&self.served.root(), |path| {
                let newest = paths.get(path).and_then(|versions| versions.last());
                read_all
                    || newest.is_none_or(|version| version.begin > since)
                    || Dice::new(drawn ^ u64::from(crc32c::crc32c(path.as_bytes())))
                        .roll()
                        .is_multiple_of(share)
            })
        };
        let verdict = judge(&self.paths, &tree, self.floor)
            .unwrap_or_else(|wrong| panic!("round {round}, after a kill: {wrong}"));
        let now = self.ticks.next();
        let lost = verdict.settle(&mut self.paths, now);
        self.floor = now;
        self.totals.with_loss += usize::from(lost > 0);
        self.totals.lost += lost;
        eprintln!(
            "round {round}: opened in {took_ms} ms with {frames} commits; {} names, {lost} steps lost, compared in {:?}",
            tree.len(),
            began.elapsed()
        );
    }

    fn work_until_killed(&mut self, round: usize, life: usize) {
        self.round_began = self.ticks.next();
        let root = self.served.root();
        let seeds: Vec<u64> = (0..WRITERS).map(|_| self.dice.roll()).collect();
        let snapshot = (round % 4 == 1).then(|| ms(self.dice.below(life)));
        let is_killed = AtomicBool::new(false);
        let (paths, ticks, served) = (&self.paths, &self.ticks, &mut self.served);
        let noted: Vec<Noted> = thread::scope(|scope| {
            let writers: Vec<_> = seeds
                .iter()
                .enumerate()
                .map(|(n, seed)| {
                    let (root, is_killed) = (&root, &is_killed);
                    scope.spawn(move || {
                        let name = format!("writer-{n}");
                        let never_syncs = n == 0;
                        let with = (root.as_path(), ticks, paths);
                        let mut writer = Writer::new(with, &name, round, *seed, never_syncs);
                        let error = writer.run();
                        assert_gone(&error, is_killed.load(Ordering::SeqCst));
                        Noted {
                            paths: writer.noted,
                            floor: writer.floor,
                            done: writer.done,
                        }
                    })
                })
                .collect();
            let mut command = served.command(&["--quiet", "snapshot"]);
            let snapshot = snapshot.map(|delay| {
                scope.spawn(move || {
                    thread::sleep(delay);
                    let begin = ticks.next();
                    command.status().unwrap().success().then_some(begin)
                })
            });
            thread::sleep(ms(life));
            is_killed.store(true, Ordering::SeqCst);
            served.kill();
            let mut noted: Vec<Noted> = writers.into_iter().map(|w| w.join().unwrap()).collect();
            // A snapshot that was answered is an acknowledgement of all that was done before.
            if let Some(begin) = snapshot.and_then(|thread| thread.join().unwrap()) {
                noted[0].floor = noted[0].floor.max(begin);
            }
            noted
        });
        for noted in noted {
            self.floor = self.floor.max(noted.floor);
            self.totals.steps += noted.done.steps;
            self.totals.syncs += noted.done.syncs;
            for (path, versions) in noted.paths {
                let known = self.paths.entry(path).or_insert_with(|| vec![absent()]);
                known.extend(versions);
            }
        }
    }

    fn check(&mut self, args: &[&str]) {
        let args: Vec<&str> = ["--json"].iter().chain(args).copied().collect();
        let output = self.served.run(&args).stdout;
        // Lines of progress may stand before it.
        let last = output
            .split(|byte| *byte == b'\n')
            .rfind(|line| !line.is_empty());
        let report: Value = serde_json::from_slice(last.unwrap()).unwrap();
        assert_eq!(report["problems"], Value::Array(Vec::new()), "{report}");
        self.totals.checks += 1;
    }

    /// The external volume alone shows the tree of one moment, not before `floor`.
    fn look_at_the_external_volume(&mut self, floor: Moment) {
        let tree = self.served.external_tree();
        let verdict = judge(&self.paths, &tree, floor)
            .unwrap_or_else(|wrong| panic!("the external volume alone: {wrong}"));
        eprintln!(
            "the external volume alone: {} names, of a moment between {} and {}",
            tree.len(),
            verdict.from,
            verdict.until
        );
        self.totals.views += 1;
    }

    fn finish(&mut self) {
        self.served.set_away(false);
        self.recover(self.totals.kills + 1, true);
        let now = self.ticks.next();
        self.served
            .run(&["wait", "--until", "archived", "--timeout", "60"]);
        self.check(&["check", "--read-data", "--external"]);
        self.served.unmount();
        assert_eq!(self.served.unsent_packs(), 0);
        self.look_at_the_external_volume(now);
    }
}

fn absent() -> Version {
    Version {
        begin: 0,
        certain: 0,
        is_write: false,
        node: Node::Absent,
    }
}

/// A writer ends because its mount is gone, and for no other reason. The kernel answers EIO to some
/// requests that were under way.
fn assert_gone(error: &io::Error, is_killed: bool) {
    let gone = [nix::libc::ENOTCONN, nix::libc::ECONNABORTED, nix::libc::EIO];
    let is_gone = error
        .raw_os_error()
        .is_some_and(|code| gone.contains(&code));
    assert!(
        is_gone && is_killed,
        "a writer failed, killed: {is_killed}: {error}"
    );
}

#[test]
fn what_was_synced_survives_fifty_kills_and_the_rest_is_what_was_done_up_to_one_moment() {
    if !can_mount() {
        return;
    }
    let seed = setting("TIDEFS_KILL_SEED").unwrap_or(1);
    let rounds =
        setting("TIDEFS_KILL_ROUNDS").map_or(ROUNDS, |rounds| usize::try_from(rounds).unwrap());
    let mut trial = Trial::new(seed);
    for round in 1..=rounds {
        trial.round(round);
    }
    trial.finish();
    let totals = &trial.totals;
    eprintln!("seed {seed}: {totals:?}");
    // The kills came when something could be lost, or they prove nothing.
    assert!(totals.with_unsent * 10 >= rounds * 9, "{totals:?}");
    assert!(totals.with_uncertain * 10 >= rounds * 9, "{totals:?}");
    assert!(totals.with_loss * 2 >= rounds, "{totals:?}");
}
