//! The packs of a check: local copies against the ledger, external ones against the listing.

use std::collections::HashMap;
use std::path::Path;

use vfs::{ObjectKey, VolumeExt};

use crate::error::Error;
use crate::format::frame::PackExtent;
use crate::format::pack::PackHeader;
use crate::maintain::check::{CheckReport, OnProgress};
use crate::maintain::external::ADVICE;
use crate::pack::ledger::{PackEntry, PackState};
use crate::pack::read::{LocalPack, MemoryPack, ReadAt};
use crate::pack::verify::{PackReport, survey, verify_pack};
use crate::types::PackId;

/// The ledger as it was read.
pub(super) type Ledgered = [(PackId, PackEntry)];

const LOCAL_ADVICE: &str = "tidefs check --fix fetches it again, if the external volume has it whole; \
     else what it held and nothing else holds is lost";
const LOST: &str = "it was not sent yet: what it held and nothing else holds is lost, unless the source still has it";

/// Whether the external volume should have it.
pub(super) fn is_uploaded(entry: &PackEntry) -> bool {
    matches!(entry.state, PackState::Uploaded { .. })
}

/// Checks the local copies of all packs.
pub(super) fn check_local(
    root: &Path,
    ledger: &Ledgered,
    is_evicted: &dyn Fn(PackId) -> bool,
    read_data: bool,
    report: &mut CheckReport,
    progress: OnProgress<'_>,
) {
    for (pack, entry) in ledger {
        report.objects += 1;
        let path = root.join(pack.object_name());
        let name = path.display().to_string();
        let verified = LocalPack::open(&path).and_then(|local| {
            let len = local.len()?;
            Ok((
                len,
                verify_pack(&local, *pack, read_data && !entry.evicted)?,
            ))
        });
        match verified {
            Ok((len, mut found)) => {
                if !found.absent.is_empty() && is_evicted(*pack) {
                    found.absent.clear();
                    found.damaged.clear();
                }
                note(&name, len, entry, &found, LOCAL_ADVICE, report);
                report.bytes += if read_data { len } else { 0 };
                progress("reading local packs", report.bytes);
            }
            Err(error) => report.add_error(&name, error, LOCAL_ADVICE),
        }
    }
}

/// Checks packs that are not sealed yet, up to what the journal says is committed.
pub(super) fn check_open(
    root: &Path,
    ledger: &Ledgered,
    named: &[PackExtent],
    report: &mut CheckReport,
) {
    let open = named
        .iter()
        .filter(|extent| !ledger.iter().any(|(pack, _)| *pack == extent.pack));
    for extent in open {
        report.objects += 1;
        let path = root.join(extent.pack.object_name());
        let name = path.display().to_string();
        let read = LocalPack::open(&path).and_then(|local| local.read_at(0, extent.len as usize));
        match read {
            Ok(bytes) => {
                if let Err(reason) = PackHeader::decode(&bytes) {
                    report.add(&name, Some(0), reason, LOST);
                }
                for damage in survey(extent.pack, &bytes).damage {
                    let offset = Some(u64::from(damage.offset));
                    report.add(&name, offset, damage.reason, LOST);
                }
            }
            Err(error) => report.add_error(&name, error, LOST),
        }
    }
}

fn note(
    name: &str,
    len: u64,
    entry: &PackEntry,
    found: &PackReport,
    advice: &str,
    report: &mut CheckReport,
) {
    if len != u64::from(entry.len) {
        report.add(
            name,
            None,
            format!("it has {len} bytes, it had {}", entry.len),
            advice,
        );
    }
    for damage in &found.damaged {
        report.add(
            name,
            Some(u64::from(damage.offset)),
            damage.reason.clone(),
            advice,
        );
    }
    for absent in &found.absent {
        report.add(
            name,
            Some(u64::from(absent.offset)),
            format!("blob {} is not there: zeros are", absent.hash),
            advice,
        );
    }
}

/// Checks that the external volume has every pack that it should, and with `read_data` that they are whole.
pub(super) fn check_external(
    external: &dyn vfs::Volume,
    ledger: &Ledgered,
    read_data: bool,
    report: &mut CheckReport,
    progress: OnProgress<'_>,
) {
    let mut there: HashMap<String, u64> = HashMap::new();
    let listed = external.for_each("items/", |meta| -> Result<(), vfs::Error> {
        there.insert(meta.key.to_string(), meta.len);
        Ok(())
    });
    if let Err(error) = listed {
        return report.add_error(
            &external.to_string(),
            error.into(),
            "try again when it is reachable",
        );
    }
    for (pack, entry) in ledger.iter().filter(|(_, entry)| is_uploaded(entry)) {
        report.objects += 1;
        let name = pack.object_name();
        let object = format!("{external}/{name}");
        match there.get(&name) {
            None => report.add(object, None, "it is not there", ADVICE),
            Some(len) if *len != u64::from(entry.len) => {
                report.add(
                    object,
                    None,
                    format!("it has {len} bytes, it had {}", entry.len),
                    ADVICE,
                );
            }
            Some(len) if read_data => match read(external, &name, *len) {
                Ok(bytes) => {
                    let copy = MemoryPack {
                        name: object.clone(),
                        bytes,
                    };
                    match verify_pack(&copy, *pack, true) {
                        Ok(found) => note(&object, *len, entry, &found, ADVICE, report),
                        Err(error) => report.add_error(&object, error, ADVICE),
                    }
                    report.bytes += len;
                    progress("reading external packs", report.bytes);
                }
                Err(error) => report.add_error(&object, error, "try again when it is reachable"),
            },
            Some(_) => {}
        }
    }
}

fn read(external: &dyn vfs::Volume, name: &str, len: u64) -> Result<bytes::Bytes, Error> {
    Ok(external.get(&ObjectKey::new(name)?, 0..len)?)
}
