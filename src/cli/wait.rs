//! `tidefs wait`

use crate::cli::args::Wait;
use crate::cli::{Context, Outcome};
use crate::daemon::{Request, Until};

pub(super) fn run(context: &mut Context, wait: &Wait) -> Outcome {
    let until = Until::from(wait.until);
    let request = Request::Wait {
        until,
        timeout_ms: wait.timeout.map(|secs| secs.saturating_mul(1000)),
    };
    let document = context.ask(&request)?;
    context.reporter.clear();
    let text = match until {
        Until::Local => "All that was written so far survives a power cut of this machine.",
        Until::External => "The bytes of all that was written so far are on the external volume.",
        Until::Archived => "The external volume alone gives back all that was written so far.",
    };
    context.out.done(&document, text)
}
