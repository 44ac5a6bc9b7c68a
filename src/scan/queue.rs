//! What is left to do of a scan, for several workers: the newest first, so that few directories are open at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Tasks, and how many workers are at one.
#[derive(Debug)]
pub struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    tasks: Vec<T>,
    busy: usize,
    is_closed: bool,
}

impl<T> Queue<T> {
    /// With these to begin with; the last is done first.
    pub fn new(tasks: Vec<T>) -> Queue<T> {
        Queue {
            state: Mutex::new(State {
                tasks,
                busy: 0,
                is_closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more task.
    pub fn push(&self, task: T) {
        self.lock().tasks.push(task);
        self.changed.notify_one();
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lock().tasks.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next task; `None` when there are none and nobody is at one that could bring more.
    /// [`Queue::done`] must follow each.
    pub fn next(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(task) = state.tasks.pop() {
                state.busy += 1;
                return Some(task);
            }
            if state.busy == 0 {
                state.is_closed = true;
                self.changed.notify_all();
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next task, if it is one of these; never waits. [`Queue::done`] must follow.
    pub fn next_if(&self, is_one: impl FnOnce(&T) -> bool) -> Option<T> {
        let mut state = self.lock();
        if !state.tasks.last().is_some_and(is_one) {
            return None;
        }
        state.busy += 1;
        state.tasks.pop()
    }

    /// Takes tasks again, after all were done.
    pub fn open(&self) {
        self.lock().is_closed = false;
    }

    /// The task that a worker was at is done.
    pub fn done(&self) {
        let mut state = self.lock();
        state.busy -= 1;
        if state.busy == 0 && state.tasks.is_empty() {
            state.is_closed = true;
            self.changed.notify_all();
        }
    }

    /// Waits until all is done, or for a moment. Tells whether all is done.
    pub fn wait(&self, moment: Duration) -> bool {
        let state = self.lock();
        let waited = self
            .changed
            .wait_timeout_while(state, moment, |state| !state.is_closed);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_end_when_no_task_can_bring_another() {
        let queue = Queue::new(vec![5_u32]);
        let done = Mutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some(task) = queue.next() {
                        for _ in 0..task {
                            queue.push(task - 1);
                        }
                        *done.lock().unwrap() += 1;
                        queue.done();
                    }
                });
            }
            while !queue.wait(Duration::from_millis(10)) {}
        });
        // 5 brings 5 of 4, each of which brings 4 of 3 ..
        assert_eq!(*done.lock().unwrap(), 1 + 5 + 20 + 60 + 120 + 120);
    }
}
