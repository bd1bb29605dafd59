//! Memory of a run: what is free is asked once, values that are left to the program are chosen, what cannot fit is refused, and
//! the first step's peak is measured beside the prediction.

use std::collections::BTreeMap;

use asyncthink_data::write_bytes_atomic;
use asyncthink_distributed::Ranks;
use asyncthink_model::ModelConfig;
use asyncthink_recipe::OrAuto;
use asyncthink_torch::{free_bytes, memory_use, reset_peak_memory};
use serde::Serialize;
use tch::Device;

use crate::error::{Error, Result};
use crate::memory::{Chosen, Machine, MemoryPrediction, MemorySettings, SettledMemory};
use crate::observer::{MemoryReport, Observer};
use crate::settings::RunSettings;

/// Keys under which a checkpoint has what was chosen.
const MICRO_BATCH_TOKENS: &str = "micro_batch_tokens";
const ACTIVATION_CHECKPOINTING: &str = "activation_checkpointing";

/// File of the stage's folder with the prediction and what was measured.
const FILE: &str = "memory.json";

/// Values of a stage's section that may be left to the program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) micro_batch_tokens: OrAuto<usize>,
    pub(crate) activation_checkpointing: OrAuto<bool>,
}

/// Memory of a run, settled.
#[derive(Debug)]
pub(crate) struct MemoryPlan {
    /// Micro-batches and checkpointing.
    pub(crate) chosen: Chosen,
    /// Most bytes for the KV cache where it takes what is left; `None` where that is not known.
    pub(crate) cache_bytes: Option<u64>,
    /// Whether cache and activations do not fit side by side, so that the cache is given back before an update.
    pub(crate) cache_takes_turns: bool,
    prediction: MemoryPrediction,
    device: Device,
    /// In use before the model was loaded.
    baseline_bytes: Option<u64>,
    is_measured: bool,
}

/// What is written into the stage's folder.
#[derive(Serialize)]
struct File<'a> {
    micro_batch_tokens: usize,
    activation_checkpointing: bool,
    predicted_bytes: u64,
    peak_bytes: u64,
    predicted: &'a MemoryPrediction,
}

/// The machine as a rank finds it before it loads anything; a collective. All ranks count with what the poorest has.
pub(crate) fn machine_of(ranks: &Ranks, device: Device) -> Result<Machine> {
    let mut free = free_bytes(device);
    if device == Device::Cpu {
        // Ranks of a machine share its memory.
        let host = asyncthink_launch::host_name();
        let hosts = ranks.gather_bytes(host.as_bytes())?;
        let num_local = hosts.iter().filter(|other| **other == host.as_bytes());
        let num_local = num_local.count().max(1) as u64;
        free = free.map(|free| free / num_local);
    }
    let all = ranks.gather_values(&[free.map_or(-1.0, |free| free as f64)])?;
    let least = all
        .iter()
        .map(|of_rank| of_rank[0])
        .fold(f64::INFINITY, f64::min);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of bytes"
    )]
    let free_here = (least >= 0.0).then_some(least as u64);
    Ok(Machine {
        device,
        num_threads: asyncthink_torch::thread_budget().unwrap_or(1),
        world_size: ranks.world_size(),
        free_bytes: free_here,
        free_host_bytes: free_bytes(Device::Cpu),
    })
}

impl MemoryPlan {
    /// Chooses what is left to the program, and refuses what cannot fit. `chosen_before` is what a checkpoint was run with; what
    /// is chosen now is put there.
    pub(crate) fn new(
        run: &RunSettings,
        config: &ModelConfig,
        machine: &Machine,
        settings: &MemorySettings,
        asked: Asked,
        chosen_before: &mut BTreeMap<String, String>,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let tokens = match asked.micro_batch_tokens {
            OrAuto::Given(tokens) => Some(tokens as u64),
            OrAuto::Auto => chosen_before
                .get(MICRO_BATCH_TOKENS)
                .and_then(|text| text.parse().ok()),
        };
        let checkpointing = match asked.activation_checkpointing {
            OrAuto::Given(flag) => Some(flag),
            OrAuto::Auto => chosen_before
                .get(ACTIVATION_CHECKPOINTING)
                .and_then(|text| text.parse().ok()),
        };
        let budget = run.memory_budget;
        let settled = SettledMemory::new(config, settings, machine, budget, tokens, checkpointing);
        if let Some(error) = settled.refusal(config, run.stage.name()) {
            if !settled.is_guess() {
                return Err(error);
            }
            observer.warning(&error.to_string());
        }
        let chosen = settled.chosen;
        chosen_before.insert(
            MICRO_BATCH_TOKENS.to_owned(),
            chosen.micro_batch_tokens.to_string(),
        );
        chosen_before.insert(
            ACTIVATION_CHECKPOINTING.to_owned(),
            chosen.activation_checkpointing.to_string(),
        );
        reset_peak_memory(machine.device);
        Ok(Self {
            chosen,
            cache_bytes: settled.cache_bytes,
            cache_takes_turns: settled.cache_takes_turns,
            prediction: settled.prediction,
            device: machine.device,
            baseline_bytes: memory_use(machine.device).map(|memory| memory.current_bytes),
            is_measured: false,
        })
    }

    /// Tells what the first step took at most, beside the prediction, and writes both into the stage's folder; nothing after the
    /// first call.
    pub(crate) fn measure(
        &mut self,
        run: &RunSettings,
        ranks: &Ranks,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        if std::mem::replace(&mut self.is_measured, true) {
            return Ok(());
        }
        let (Some(memory), Some(baseline)) = (memory_use(self.device), self.baseline_bytes) else {
            return Ok(());
        };
        let peak_bytes = memory.peak_bytes.saturating_sub(baseline);
        let predicted_bytes = self.prediction.step_bytes();
        observer.memory(&MemoryReport {
            predicted_bytes,
            peak_bytes,
            micro_batch_tokens: self.chosen.tokens(),
            activation_checkpointing: self.chosen.activation_checkpointing,
        });
        if ranks.is_first() {
            let file = File {
                micro_batch_tokens: self.chosen.tokens(),
                activation_checkpointing: self.chosen.activation_checkpointing,
                predicted_bytes,
                peak_bytes,
                predicted: &self.prediction,
            };
            let text = serde_json::to_vec_pretty(&file)
                .map_err(|error| Error::stage("describing the memory of the run", error))?;
            write_bytes_atomic(&run.layout.stage(run.stage).join(FILE), &text)?;
        }
        Ok(())
    }
}
