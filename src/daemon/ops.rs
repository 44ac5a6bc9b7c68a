//! Long operations of a serving process: each has a number, can be watched, and can be stopped. Who started one may go
//! away; it goes on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use crate::daemon::failure::Failure;
use crate::daemon::protocol::Progress;
use crate::error::Error;

/// Ended ones that are still told of.
const REMEMBERED_MAX: usize = 32;
/// Those who watch hear something at least this often.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The operations.
#[derive(Debug, Default)]
pub struct Ops {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    all: BTreeMap<u64, Op>,
}

#[derive(Debug)]
struct Op {
    what: What,
    stop: Arc<AtomicBool>,
    progress: Option<Progress>,
    end: Option<Result<Value, Failure>>,
}

/// What an operation is.
#[derive(Clone, Debug, Serialize)]
pub struct What {
    /// Its kind: `scan`.
    pub kind: &'static str,
    /// What it is about, for people.
    pub about: String,
    /// What nobody else may work on meanwhile.
    #[serde(skip)]
    pub keys: Vec<String>,
    /// When it was started, seconds since 1970.
    pub since: i64,
}

/// How an operation stands.
#[derive(Clone, Debug, Serialize)]
pub struct OpStatus {
    /// Its number.
    pub id: u64,
    /// What it is.
    #[serde(flatten)]
    pub what: What,
    /// `running`, `stopping`, `done`, `stopped`, `failed`.
    pub state: &'static str,
    /// How far it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// What an operation has of its own entry.
#[derive(Clone, Debug)]
pub struct OpHandle {
    ops: Arc<Ops>,
    id: u64,
    stop: Arc<AtomicBool>,
}

impl OpHandle {
    /// Set when it is to end.
    pub fn stop(&self) -> &AtomicBool {
        &self.stop
    }

    /// Tells how far it is.
    pub fn tell(&self, progress: Progress) {
        if let Some(op) = self.ops.table().all.get_mut(&self.id) {
            op.progress = Some(progress);
        }
        self.ops.changed.notify_all();
    }
}

impl Ops {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an operation on a thread of its own, unless another one is at the same. Returns its number.
    pub fn start(
        self: &Arc<Ops>,
        what: What,
        work: impl FnOnce(&OpHandle) -> Result<Value, Failure> + Send + 'static,
    ) -> Result<u64, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let id = {
            let mut table = self.table();
            let other = table.all.iter().find(|(_, op)| {
                op.end.is_none() && op.what.keys.iter().any(|key| what.keys.contains(key))
            });
            if let Some((id, op)) = other {
                return Err(Failure::failed(format!(
                    "a {} of {} runs already, operation {id}: 'tidefs ops watch {id}' shows how far it is",
                    op.what.kind, op.what.about
                )));
            }
            table.last += 1;
            let id = table.last;
            let op = Op {
                what,
                stop: Arc::clone(&stop),
                progress: None,
                end: None,
            };
            table.all.insert(id, op);
            id
        };
        let handle = OpHandle {
            ops: Arc::clone(self),
            id,
            stop,
        };
        let spawned = thread::Builder::new()
            .name(format!("op-{id}"))
            .spawn(move || {
                let outcome =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&handle)));
                let outcome = outcome.unwrap_or_else(|_| {
                    Err(Failure::failed(
                        "the operation ended by a fault of this program: see the log",
                    ))
                });
                handle.ops.end(id, outcome);
            });
        if let Err(error) = spawned {
            let failure = Failure::from(Error::io("start", "a thread for the operation")(error));
            self.end(id, Err(failure.clone()));
            return Err(failure);
        }
        Ok(id)
    }

    fn end(&self, id: u64, outcome: Result<Value, Failure>) {
        let mut table = self.table();
        if let Some(op) = table.all.get_mut(&id) {
            op.end = Some(outcome);
        }
        let over: Vec<u64> = table
            .all
            .iter()
            .filter(|(_, op)| op.end.is_some())
            .map(|(id, _)| *id)
            .collect();
        for id in over.iter().take(over.len().saturating_sub(REMEMBERED_MAX)) {
            table.all.remove(id);
        }
        drop(table);
        self.changed.notify_all();
    }

    /// Waits for the end of an operation, telling how far it is. `progress` says whether to go on watching.
    pub fn follow(
        &self,
        id: u64,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Value, Failure> {
        loop {
            let table = self.table();
            let op = table.all.get(&id).ok_or_else(|| unknown(id))?;
            if let Some(end) = &op.end {
                return end.clone();
            }
            let waited = self.changed.wait_timeout(table, HEARTBEAT);
            let (table, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let op = table.all.get(&id).ok_or_else(|| unknown(id))?;
            let step = op.progress.clone().unwrap_or_else(|| Progress {
                step: "starting".into(),
                ..Progress::default()
            });
            drop(table);
            if !progress(step) {
                return Err(Failure::stopped(format!("operation {id} goes on")));
            }
        }
    }

    /// All that run, and the newest that ended.
    pub fn list(&self) -> Vec<OpStatus> {
        let table = self.table();
        let status = |(id, op): (&u64, &Op)| OpStatus {
            id: *id,
            what: op.what.clone(),
            state: op.state(),
            progress: op.progress.clone().filter(|_| op.end.is_none()),
            failure: op.end.as_ref().and_then(|end| end.as_ref().err().cloned()),
        };
        table.all.iter().map(status).collect()
    }

    /// Asks an operation to end. Returns what it is.
    pub fn stop(&self, id: u64) -> Result<OpStatus, Failure> {
        let op = self.list().into_iter().find(|op| op.id == id);
        let op = op.ok_or_else(|| unknown(id))?;
        if let Some(op) = self.table().all.get(&id) {
            op.stop.store(true, Ordering::Relaxed);
        }
        Ok(op)
    }

    /// Asks all of them to end, and waits for that, at most for `patience`.
    pub fn stop_all(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut table = self.table();
        loop {
            let mut running = table.all.values().filter(|op| op.end.is_none()).peekable();
            if running.peek().is_none() {
                return;
            }
            running.for_each(|op| op.stop.store(true, Ordering::Relaxed));
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("an operation does not end: closing without it");
                return;
            }
            let waited = self.changed.wait_timeout(table, left);
            table = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Op {
    fn state(&self) -> &'static str {
        let is_stopped = self.stop.load(Ordering::Relaxed);
        match &self.end {
            None if is_stopped => "stopping",
            None => "running",
            Some(_) if is_stopped => "stopped",
            Some(Ok(_)) => "done",
            Some(Err(_)) => "failed",
        }
    }
}

fn unknown(id: u64) -> Failure {
    Failure::failed(format!(
        "there is no operation {id}: 'tidefs ops' lists those that there are"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn what(key: &str) -> What {
        What {
            kind: "scan",
            about: "/home".into(),
            keys: vec![key.into()],
            since: 0,
        }
    }

    fn until_stopped(handle: &OpHandle) -> Value {
        while !handle.stop().load(Ordering::Relaxed) {
            handle.tell(Progress::default());
            thread::sleep(Duration::from_millis(1));
        }
        json!("stopped")
    }

    #[test]
    fn two_operations_on_the_same_do_not_run_and_a_stopped_one_ends() {
        let ops = Arc::new(Ops::default());
        let id = ops.start(what("a"), |op| Ok(until_stopped(op))).unwrap();
        let second = ops
            .start(what("a"), |op| Ok(until_stopped(op)))
            .unwrap_err();
        assert!(
            second.text.contains("runs already, operation 1"),
            "{second:?}"
        );
        let other = ops.start(what("b"), |op| Ok(until_stopped(op))).unwrap();
        assert!(
            ops.follow(id, &mut |_| false).is_err(),
            "nobody has to wait"
        );
        assert_eq!(ops.stop(id).unwrap().id, id);
        assert_eq!(ops.follow(id, &mut |_| true), Ok(json!("stopped")));
        ops.stop_all(Duration::from_secs(60));
        let states: Vec<_> = ops.list().iter().map(|op| (op.id, op.state)).collect();
        assert_eq!(states, [(id, "stopped"), (other, "stopped")]);
        assert!(ops.stop(77).is_err());
        let again = ops
            .start(what("a"), |_| Err(Failure::failed("no")))
            .unwrap();
        assert!(ops.follow(again, &mut |_| true).is_err());
    }
}
