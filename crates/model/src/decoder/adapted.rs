//! Decoders with low-rank adapters.

use std::path::Path;
use std::sync::Arc;

use tch::{Device, Kind, TchError};

use super::Decoder;
use crate::adapter_file::base_of;
use crate::adapters::{Adapters, LowRank};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::generator::seeded;
use crate::lora_config::LoraConfig;
use crate::model_folder::ModelFolder;
use crate::weights;

impl Decoder {
    /// Loads a PEFT adapter folder with the base model that it names, and keeps the two apart, to train the adapters: these
    /// are f32, the base is of `kind`.
    ///
    /// # Errors
    /// When the folder is no adapter folder, or anything in either folder is missing, misshaped or not supported.
    pub fn load_adapted<'a>(
        folder: impl Into<ModelFolder<'a>>,
        device: Device,
        kind: Kind,
    ) -> Result<Self> {
        let folder = folder.into();
        let base = base_of(folder)?.ok_or_else(|| Error::Adapter {
            path: folder.dir().to_owned(),
            reason: "the folder holds no `adapter_config.json`".to_owned(),
        })?;
        let config = ModelConfig::from_dir(&base)?;
        // The small file first: it is the one that may not fit.
        let adapters = Adapters::load(folder, &config, device)?;
        let parameters = weights::load(&base, &config, device, kind)?;
        Self::assemble(config, device, kind, parameters, Some(adapters))
    }

    /// The model with adapters apart, which it shares.
    ///
    /// # Errors
    /// When a parameter is missing.
    pub fn with_adapters(self, adapters: &Adapters) -> Result<Self> {
        let Self {
            config,
            device,
            kind,
            parameters,
            ..
        } = self;
        Self::assemble(config, device, kind, parameters, Some(adapters.replica()))
    }

    /// The model with adapters added to its own tensors.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn merged_with(self, adapters: &Adapters) -> Result<Self> {
        self.with_adapters(adapters)?.into_merged()
    }

    /// Puts new adapters on a model that lies in the folder `base`; only they are trained from then on. The model computes
    /// what it did until they are.
    ///
    /// # Errors
    /// When the model has adapters already, or the memory cannot be had.
    pub fn with_new_adapters(self, config: LoraConfig, base: &Path, seed: u64) -> Result<Self> {
        if self.adapters.is_some() {
            return Err(Error::Adapter {
                path: base.to_owned(),
                reason: "the model has adapters already".to_owned(),
            });
        }
        let adapters = seeded(seed, || {
            let base = base.to_owned();
            Adapters::draw(config, base, &self.config, self.device)
        })?;
        let Self {
            config,
            device,
            kind,
            parameters,
            ..
        } = self;
        Self::assemble(config, device, kind, parameters, Some(adapters))
    }

    /// A model without adapters that computes the same: adapted projections are copies with the adapters added, everything
    /// else is shared with this one.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn merged(&self) -> Result<Self> {
        let parameters = self
            .parameters
            .iter()
            .map(|(name, tensor)| {
                let mut merged = tensor.detach();
                if let Some(adapter) = self.adapter_of(name) {
                    merged = merged.f_empty_like()?;
                    adapter.merge_into(tensor, &mut merged)?;
                }
                Ok((name.clone(), merged))
            })
            .collect::<Result<Vec<_>, TchError>>()?;
        let merged = Self::assemble(
            self.config.clone(),
            self.device,
            self.kind,
            parameters,
            None,
        )?;
        Ok(merged.with_attention(Arc::clone(&self.attention)))
    }

    /// Brings what [`Self::merged`] gave up to date with the adapters, in place.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn refresh_merged(&self, merged: &mut Self) -> Result<()> {
        for ((name, tensor), (_, copy)) in self.parameters.iter().zip(&mut merged.parameters) {
            if let Some(adapter) = self.adapter_of(name) {
                adapter.merge_into(tensor, copy)?;
            }
        }
        Ok(())
    }

    /// Merges in place: the base's own tensors are overwritten.
    pub(super) fn into_merged(mut self) -> Result<Self> {
        let Some(adapters) = self.adapters.take() else {
            return Ok(self);
        };
        for (name, tensor) in &mut self.parameters {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            if let Some(adapter) = adapters.of_module(module) {
                let base = tensor.shallow_clone();
                adapter.merge_into(&base, tensor)?;
            }
        }
        let Self {
            config,
            device,
            kind,
            parameters,
            ..
        } = self;
        Self::assemble(config, device, kind, parameters, None)
    }

    pub(crate) fn adapter_of(&self, parameter: &str) -> Option<LowRank> {
        let module = parameter.strip_suffix(".weight")?;
        self.adapters.as_ref()?.of_module(module)
    }
}
