//! Memory of a training stage, predicted before anything is loaded: a table, and whether it fits.

use asyncthink_launch::World;
use asyncthink_model::ModelConfig;
use asyncthink_recipe::{MemoryBudget, OrAuto, Recipe, Stage};
use asyncthink_torch::{DeviceSpec, free_bytes, open_device};
use asyncthink_trainer::memory::{Machine, MemoryPrediction, SettledMemory, When, bytes_text};
use asyncthink_trainer::{GrpoSettings, SftSettings};
use tch::Device;

use crate::failure::Failure;

/// Memory of the GPUs that a recipe is reported for where there is none at hand, in GB as their makers count.
const GPUS_GB: [u64; 2] = [80, 141];

const GB: u64 = 1_000_000_000;

/// Memory of a training stage on machines of any kind.
pub(crate) struct StageMemory<'a> {
    stage: Stage,
    config: &'a ModelConfig,
    settings: Settings,
    prompt_tokens: usize,
    budget: Option<MemoryBudget>,
    micro_batch_tokens: OrAuto<usize>,
    activation_checkpointing: OrAuto<bool>,
    num_threads: usize,
    world_size: usize,
}

enum Settings {
    Sft(Box<SftSettings>),
    Grpo(Box<GrpoSettings>),
}

impl<'a> StageMemory<'a> {
    /// That of a stage; `None` of one that does not train.
    pub(crate) fn of(
        stage: Stage,
        recipe: &Recipe,
        config: &'a ModelConfig,
        prompt_tokens: usize,
    ) -> Result<Option<Self>, Failure> {
        let settings = match stage {
            Stage::Sft => Settings::Sft(Box::new(SftSettings::from_recipe(recipe)?)),
            Stage::Grpo => Settings::Grpo(Box::new(GrpoSettings::from_recipe(recipe)?)),
            Stage::Synth | Stage::Eval => return Ok(None),
        };
        let (micro_batch_tokens, activation_checkpointing) = match &settings {
            Settings::Sft(sft) => (
                sft.section.micro_batch_tokens,
                sft.section.activation_checkpointing,
            ),
            Settings::Grpo(grpo) => (
                grpo.section.micro_batch_tokens,
                grpo.section.activation_checkpointing,
            ),
        };
        Ok(Some(Self {
            stage,
            config,
            settings,
            prompt_tokens,
            budget: recipe.memory.budget,
            micro_batch_tokens,
            activation_checkpointing,
            num_threads: match recipe.num_threads {
                0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
                threads => threads,
            },
            world_size: World::from_env().map_or(1, |world| world.world_size() as usize),
        }))
    }

    /// Predicted memory of a rank on a device with so much free memory.
    pub(crate) fn on(&self, device: Device, free_bytes: Option<u64>) -> SettledMemory {
        self.beside(device, free_bytes, None)
    }

    fn beside(
        &self,
        device: Device,
        free_bytes: Option<u64>,
        free_host_bytes: Option<u64>,
    ) -> SettledMemory {
        let machine = Machine {
            device,
            num_threads: self.num_threads,
            world_size: self.world_size,
            free_bytes,
            free_host_bytes,
        };
        let settings = match &self.settings {
            Settings::Sft(sft) => sft.memory(self.config, &machine, None),
            Settings::Grpo(grpo) => grpo.memory(self.config, &machine, self.prompt_tokens),
        };
        SettledMemory::new(
            self.config,
            &settings,
            &machine,
            self.budget,
            self.micro_batch_tokens.given().map(|tokens| tokens as u64),
            self.activation_checkpointing.given(),
        )
    }
}

/// Lines about the memory of a stage that trains; none of others.
///
/// # Errors
/// When the machine at hand, or the recipe's `memory.budget`, is too small.
pub(crate) fn lines(
    stage: Stage,
    recipe: &Recipe,
    config: &ModelConfig,
    prompt_tokens: usize,
) -> Result<Vec<String>, Failure> {
    let Some(memory) = StageMemory::of(stage, recipe, config, prompt_tokens)? else {
        return Ok(Vec::new());
    };
    let spec: DeviceSpec = recipe.device.to_string().parse()?;
    let wants_gpu = matches!(spec, DeviceSpec::Cuda(_));
    let found = open_device(&spec).ok();
    let here = found.filter(|device| device.is_cuda() || !wants_gpu);
    if let Some(device) = here {
        let settled = memory.beside(device, free_bytes(device), free_bytes(Device::Cpu));
        let lines = table(&memory, &settled, "");
        if let Some(error) = settled.refusal(config, stage.name())
            && !settled.is_guess()
        {
            return Err(error.into());
        }
        return Ok(lines);
    }
    // None of these is the machine of the run: what does not fit is said, not refused.
    let mut lines = Vec::new();
    for gb in GPUS_GB {
        let settled = memory.on(Device::Cuda(0), Some(gb * GB));
        let place = format!(" on a GPU of {gb} GB");
        lines.extend(table(&memory, &settled, &place));
        if let Some(error) = settled.refusal(config, stage.name()) {
            lines.push(format!("memory{place}: the run would be refused: {error}"));
            if let Some(hint) = error.hint() {
                lines.push(format!("memory{place}: {hint}"));
            }
        }
    }
    Ok(lines)
}

fn table(memory: &StageMemory<'_>, settled: &SettledMemory, place: &str) -> Vec<String> {
    let chosen = settled.chosen;
    let origin = |is_given| if is_given { "" } else { " (auto)" };
    let mut lines = vec![format!(
        "memory of `{}`{place}: micro_batch_tokens {}{}, activation_checkpointing {}{}{}",
        memory.stage.name(),
        chosen.micro_batch_tokens,
        origin(memory.micro_batch_tokens != OrAuto::Auto),
        chosen.activation_checkpointing,
        origin(memory.activation_checkpointing != OrAuto::Auto),
        if settled.cache_takes_turns {
            "; the KV cache is given back before each update"
        } else {
            ""
        },
    )];
    let prediction = &settled.prediction;
    for part in &prediction.parts {
        let mut places = Vec::new();
        if part.device_bytes > 0 {
            places.push(bytes_text(part.device_bytes));
        }
        if part.host_bytes > 0 {
            places.push(format!("{} on the host", bytes_text(part.host_bytes)));
        }
        if places.is_empty() {
            continue;
        }
        let when = match part.when {
            When::Always => "",
            When::Training => ", while training",
            When::Sampling => ", while sampling",
            When::Saving => ", while saving",
        };
        lines.push(format!("  {:<24} {}{when}", part.name, places.join(", ")));
    }
    lines.push(format!("  {:<24} {}", "at most", most(prediction, settled)));
    lines
}

fn most(prediction: &MemoryPrediction, settled: &SettledMemory) -> String {
    let mut text = bytes_text(prediction.device_bytes());
    if let Some(limit) = settled.limit_bytes {
        text = format!("{text} of {}", bytes_text(limit));
    }
    if prediction.host_bytes() > 0 {
        text = format!(
            "{text}, and {} on the host",
            bytes_text(prediction.host_bytes())
        );
    }
    text
}
