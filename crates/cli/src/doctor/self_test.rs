//! `doctor --self-test`: what a device computes, against plain references, and each stage once.

use std::io::Write;

use asyncthink_torch::{DeviceSpec, open_device, self_test};
use serde_json::json;
use tch::Device;

use super::check::Check;
use super::{decoding, ranks, stages};
use crate::failure::Failure;

/// Runs all checks on a device and prints a line for each as it ends.
///
/// # Errors
/// When the device cannot be opened, or a check failed.
pub(super) fn run(device: &DeviceSpec, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let opened = open_device(device)?;
    let mut num_failed = 0;
    let mut num_checks = 0;
    let mut tell = |check: Check| -> Result<(), Failure> {
        num_checks += 1;
        num_failed += usize::from(check.outcome.is_err());
        print(&check, json, out)
    };
    if let Device::Cuda(_) = opened {
        match self_test(opened) {
            Ok(checks) => {
                for check in checks {
                    tell(check.into())?;
                }
            }
            Err(error) => tell(Check::new("CUDA kernels", Err(error.to_string())))?,
        }
    }
    for check in decoding::checks(opened) {
        tell(check)?;
    }
    tell(ranks::check(opened))?;
    for check in stages::checks(opened) {
        tell(check)?;
    }
    if num_failed > 0 {
        return Err(Failure::run(format!(
            "{num_failed} of {num_checks} checks failed on {opened:?}"
        ))
        .hint("do not train on this device; report the lines that say `FAILED` with the output of `doctor`"));
    }
    if !json {
        writeln!(out, "{num_checks} checks passed on {opened:?}")?;
    }
    Ok(())
}

fn print(check: &Check, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let (is_ok, found) = match &check.outcome {
        Ok(found) => (true, found),
        Err(found) => (false, found),
    };
    if json {
        let line = json!({ "check": check.name, "passed": is_ok, "found": found });
        writeln!(out, "{line}")?;
    } else {
        let verdict = if is_ok { "ok    " } else { "FAILED" };
        writeln!(out, "{verdict}  {:44}{found}", check.name)?;
    }
    out.flush()?;
    Ok(())
}
