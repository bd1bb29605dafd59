//! A decoder's weights of one moment, to be written while the decoder is trained on.

use tch::{Device, TchError, Tensor};

use super::Decoder;
use crate::error::Result;

impl Decoder {
    /// A copy on the host of what training changes, to be saved from any thread. Base weights under adapters are shared where
    /// they are: they never change.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn host_copy(&self) -> Result<Self> {
        let copy = |(name, tensor): &(String, Tensor)| -> Result<(String, Tensor), TchError> {
            let value = match &self.adapters {
                Some(_) => tensor.detach(),
                None => copy_to_host(tensor)?,
            };
            Ok((name.clone(), value))
        };
        let parameters = self.parameters.iter().map(copy);
        let parameters = parameters.collect::<Result<Vec<_>, TchError>>()?;
        let adapters = self.adapters.as_ref().map(|all| all.map(copy_to_host));
        let adapters = adapters.transpose()?;
        Self::assemble(
            self.config.clone(),
            self.device,
            self.kind,
            parameters,
            adapters,
        )
    }
}

/// A copy with memory of its own, without a gradient.
fn copy_to_host(tensor: &Tensor) -> Result<Tensor, TchError> {
    match tensor.device() {
        Device::Cpu => tensor.detach().f_detach_copy(),
        _ => tensor.detach().f_to_device(Device::Cpu),
    }
}
