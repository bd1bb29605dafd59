//! Parameters one at a time, for a model that no single process holds whole.

use tch::{Device, Kind, Tensor};

use crate::adapter_file::base_of;
use crate::adapters::Adapters;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::generator::seeded;
use crate::model_folder::ModelFolder;
use crate::precision::Precision;
use crate::weights::{self, VisitParameter};

/// Standard deviation of freshly drawn weights (Qwen's `initializer_range`).
const INIT_STD: f64 = 0.02;

/// Hands every parameter of a model folder to `visit`, sorted by name, converted to `kind` on `device`; adapters of a PEFT
/// folder are merged into their base. One parameter is in memory at a time.
///
/// # Errors
/// When the weights are missing, misshaped or unreadable, or `visit` fails.
pub fn read_parameters<'a>(
    folder: impl Into<ModelFolder<'a>>,
    device: Device,
    kind: Kind,
    visit: VisitParameter<'_>,
) -> Result<()> {
    let folder = folder.into();
    let config = ModelConfig::from_dir(folder)?;
    let Some(base) = base_of(folder)? else {
        return weights::read_each(folder.dir(), &config, device, kind, visit);
    };
    let adapters = Adapters::load(folder, &config, device)?;
    weights::read_each(&base, &config, device, kind, &mut |name, tensor| {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let Some(adapter) = adapters.of_module(module) else {
            return visit(name, tensor);
        };
        let mut merged = tensor.f_empty_like()?;
        adapter.merge_into(&tensor, &mut merged)?;
        visit(name, merged)
    })
}

/// Hands every parameter of a new model to `visit`, sorted by name, f32 on the CPU: weights normal with deviation 0.02, the
/// two projections that write to the residual stream scaled down by `sqrt(2 * layers)`, norms at one. Equal seeds give
/// equal weights on one machine.
///
/// # Errors
/// When the memory cannot be had, or `visit` fails.
pub fn draw_parameters(config: &ModelConfig, seed: u64, visit: VisitParameter<'_>) -> Result<()> {
    let residual_std = INIT_STD / (2.0 * config.num_hidden_layers as f64).sqrt();
    let options = (Precision::F32.master(), Device::Cpu);
    seeded(seed, || {
        for (name, shape) in config.parameter_shapes() {
            let is_bias = shape.len() == 1;
            let tensor = if name.ends_with("norm.weight") {
                Tensor::f_ones(&shape, options)?
            } else if is_bias {
                Tensor::f_zeros(&shape, options)?
            } else if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") {
                Tensor::f_randn(&shape, options)? * residual_std
            } else {
                Tensor::f_randn(&shape, options)? * INIT_STD
            };
            visit(&name, tensor)?;
        }
        Ok(())
    })
}
