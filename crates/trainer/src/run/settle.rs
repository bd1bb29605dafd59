//! Settings that depend on the machine, settled before anything is loaded: all ranks take the same ones.

use asyncthink_distributed::Ranks;
use asyncthink_model::Precision;
use asyncthink_torch::set_tf32;
use tch::Device;

use crate::error::Result;
use crate::memory::precision_on;
use crate::observer::Observer;
use crate::settings::RunSettings;

/// Said where a machine has no instructions for what the recipe asks for.
const NO_BF16: &str = "`precision.compute = \"bf16\"`: this CPU has no instructions for it (AVX-512 BF16 or AMX), so the run \
     computes in f32; `precision.allow_slow_bf16 = true` computes in bf16 all the same";

const NO_OFFLOAD: &str =
    "`memory.offload = \"optimizer\"` changes nothing on a CPU: its memory is the host's";

/// The settings as this machine, and those of the other ranks, can obey them; what they cannot is said.
///
/// # Errors
/// When a GPU refuses a mode of computing, or a rank is lost.
pub fn settle(
    settings: &RunSettings,
    ranks: &Ranks,
    device: Device,
    observer: &mut dyn Observer,
) -> Result<RunSettings> {
    let mut settled = settings.clone();
    let policy = &mut settled.policy;
    if device == Device::Cpu {
        let here = precision_on(device, policy.precision, settings.allow_slow_bf16);
        let is_slow = here != policy.precision;
        let mut num_slow = [f64::from(u8::from(is_slow))];
        ranks.sum(&mut num_slow)?;
        if num_slow[0] > 0.0 {
            policy.precision = Precision::F32;
            observer.warning(NO_BF16);
        }
        if policy.offloads_optimizer {
            policy.offloads_optimizer = false;
            observer.warning(NO_OFFLOAD);
        }
    } else {
        set_tf32(settings.allow_tf32)?;
    }
    Ok(settled)
}
