//! The threads that S3 runs on: two workers named `s3-*`, shared by all volumes of the process.
//!
//! Nobody outside this folder sees a future. Whoever calls a volume waits on its own thread, and what it waits for is
//! driven here.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::runtime::{Builder, Handle};

/// Workers: one moves bytes, one is there when the first is held up by TLS or a checksum.
const WORKERS: usize = 2;
/// Threads for what blocks: name resolution, and checksums of parts.
const BLOCKING_THREADS_MAX: usize = 8;

/// The threads, as long as somebody holds this.
#[derive(Debug)]
pub(super) struct Runtime(Option<tokio::runtime::Runtime>);

impl Runtime {
    /// The process' runtime; started by the first volume, ended with the last.
    pub(super) fn shared() -> io::Result<Arc<Runtime>> {
        static SHARED: Mutex<Weak<Runtime>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = shared.upgrade() {
            return Ok(runtime);
        }
        let number = AtomicU64::new(0);
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name_fn(move || format!("s3-{}", number.fetch_add(1, Ordering::Relaxed)))
            .enable_all()
            .build()?;
        let runtime = Arc::new(Runtime(Some(runtime)));
        *shared = Arc::downgrade(&runtime);
        Ok(runtime)
    }

    /// Where tasks are started.
    pub(super) fn handle(&self) -> Handle {
        match &self.0 {
            Some(runtime) => runtime.handle().clone(),
            // Only a runtime that is being dropped has none, and nobody can hold that.
            None => Handle::current(),
        }
    }

    /// Waits for `future` on the caller's thread.
    pub(super) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.handle().block_on(future)
    }
}

impl Drop for Runtime {
    /// A name that is being resolved by a hung server must not hold up the end of the process.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
