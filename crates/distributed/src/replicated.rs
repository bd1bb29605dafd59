//! Parameters and gradients that every rank holds whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use asyncthink_torch::Work;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::flat::{BucketCuts, FlatLayout, narrow, signed};
use crate::ranks::Ranks;

/// Values and gradients of the parameters as two vectors, which the parameters are views of.
#[derive(Debug)]
pub(crate) struct Replicated {
    pub(crate) layout: FlatLayout,
    pub(crate) cuts: BucketCuts,
    /// `[flat]`, padded, of the type that computes: f32 or bf16.
    pub(crate) values: Tensor,
    /// f32 `[flat]`, padded; where autograd adds to.
    pub(crate) gradients: Tensor,
    ranks: Arc<Ranks>,
}

impl Replicated {
    /// Moves parameters, with what they hold, into a vector: all that share a parameter see the same values as before, and
    /// its gradient from now on is a part of the vector of gradients. `bucket_elements` is how much is exchanged at a time.
    ///
    /// # Errors
    /// When parameters are neither all f32 nor all bf16, or the memory cannot be had.
    pub(crate) fn take_over(
        parameters: &[(String, Tensor)],
        bucket_elements: usize,
        ranks: Arc<Ranks>,
    ) -> Result<Self> {
        let layout = FlatLayout::of(parameters);
        let cuts = BucketCuts::new(layout.num_elements(), ranks.world_size(), bucket_elements);
        let (device, kind) = parameters
            .first()
            .map_or((Device::Cpu, Kind::Float), |(_, parameter)| {
                (parameter.device(), parameter.kind())
            });
        let size = [signed(cuts.padded_elements())];
        let values = Tensor::f_zeros(size, (kind, device))?;
        let gradients = Tensor::f_zeros(size, (Kind::Float, device))?;
        let by_name: BTreeMap<&str, &Tensor> = parameters
            .iter()
            .map(|(name, parameter)| (name.as_str(), parameter))
            .collect();
        let _no_grad = tch::no_grad_guard();
        for slot in layout.slots() {
            let refuse = |reason: &str| {
                Error::stage(
                    "laying out the parameters",
                    format!("`{}` {reason}", slot.name),
                )
            };
            let parameter = by_name
                .get(slot.name.as_str())
                .ok_or_else(|| refuse("is missing"))?;
            if parameter.kind() != kind || !matches!(kind, Kind::Float | Kind::BFloat16) {
                return Err(refuse("is neither f32 nor, as all others, bf16"));
            }
            let mut value = slot.view(&values, 0)?;
            value.f_copy_(&parameter.detach())?;
            parameter.shallow_clone().f_set_data(&value)?;
            asyncthink_torch::set_grad(parameter, &slot.view(&gradients, 0)?)?;
        }
        Ok(Self {
            layout,
            cuts,
            values,
            gradients,
            ranks,
        })
    }

    /// Begins to sum gradients over the ranks into `sums`, f32 `[owned]`, of what each rank owns.
    pub(crate) fn exchange<'a>(&'a self, sums: &'a Tensor) -> BucketExchange<'a> {
        let is_alone = self.ranks.is_alone();
        BucketExchange {
            parameters: self,
            sums,
            num_waiting: if is_alone {
                0
            } else {
                self.cuts.buckets().count()
            },
            pending: Vec::new(),
        }
    }

    /// f32 values of all parameters in the first rank's host memory, out of what each rank owns of them, f32 `[owned]`; `None`
    /// on the other ranks. Without `is_copy` they may be this rank's own.
    pub(crate) fn gather_on_first_rank(
        &self,
        owned: &Tensor,
        is_copy: bool,
    ) -> Result<Option<Vec<(String, Tensor)>>> {
        let on_host = (Kind::Float, Device::Cpu);
        let vector = if self.ranks.is_alone() {
            match owned.device() {
                Device::Cpu if is_copy => owned.f_detach_copy()?,
                _ => owned.f_to_device(Device::Cpu)?,
            }
        } else if self.ranks.is_first() {
            Tensor::f_empty([signed(self.cuts.padded_elements())], on_host)?
        } else {
            Tensor::f_empty([0], on_host)?
        };
        if !self.ranks.is_alone() {
            let (device, mut start) = (self.values.device(), 0);
            for bucket in self.cuts.buckets() {
                let part = start..start + bucket.len() / self.ranks.world_size();
                start = part.end;
                let own = narrow(owned, &part)?.f_to_device(device)?;
                let all = Tensor::f_empty([signed(bucket.len())], (Kind::Float, device))?;
                let work = self.ranks.all_gather(&own, &all)?;
                self.ranks.finish(work)?;
                if self.ranks.is_first() {
                    narrow(&vector, &bucket)?.f_copy_(&all)?;
                }
            }
        }
        if !self.ranks.is_first() {
            return Ok(None);
        }
        let slots = self.layout.slots().iter();
        let named = slots.map(|slot| Ok((slot.name.clone(), slot.view(&vector, 0)?)));
        Ok(Some(named.collect::<Result<_>>()?))
    }

    /// Gives every rank what the others own and have updated.
    pub(crate) fn gather_values(&self) -> Result<()> {
        if self.ranks.is_alone() {
            return Ok(());
        }
        let mut pending = Vec::new();
        for bucket in self.cuts.buckets() {
            let part = self.cuts.part(&bucket, self.ranks.rank());
            // A copy, because the part lies in what is written.
            let own = narrow(&self.values, &part)?.f_detach_copy()?;
            let all = narrow(&self.values, &bucket)?;
            pending.push(self.ranks.all_gather_bytes(&own, &all)?);
        }
        pending
            .into_iter()
            .try_for_each(|work| self.ranks.finish(work))
    }
}

/// The sum of one update's gradients over the ranks, bucket after bucket from the last to the first: in the order in which a
/// backward pass completes them, and in the same order on all ranks.
pub struct BucketExchange<'a> {
    parameters: &'a Replicated,
    sums: &'a Tensor,
    /// Buckets that were not begun: the first ones.
    num_waiting: usize,
    pending: Vec<Work<'static>>,
}

impl BucketExchange<'_> {
    /// Begins with all buckets whose gradients are complete, now that those of a unit are, and of the units after it. Returns
    /// while they travel.
    ///
    /// # Errors
    /// When a rank is lost.
    pub fn unit_is_complete(&mut self, unit: usize) -> Result<()> {
        let start = self.parameters.layout.units()[unit].elements.start;
        self.begin_from(start)
    }

    /// Begins with all that is left and waits for everything.
    ///
    /// # Errors
    /// When a rank is lost or too slow.
    pub fn finish(mut self) -> Result<()> {
        self.begin_from(0)?;
        let ranks = &self.parameters.ranks;
        self.pending
            .into_iter()
            .try_for_each(|work| ranks.finish(work))
    }

    fn begin_from(&mut self, start: usize) -> Result<()> {
        let Replicated {
            cuts,
            gradients,
            ranks,
            ..
        } = self.parameters;
        let mut owned_end = self.sums.numel();
        for (index, bucket) in cuts
            .buckets()
            .enumerate()
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
        {
            let owned_start = owned_end - bucket.len() / ranks.world_size();
            if index < self.num_waiting && bucket.start >= start {
                let sum = narrow(self.sums, &(owned_start..owned_end))?;
                let gradients = narrow(gradients, &bucket)?;
                self.pending.push(ranks.reduce_scatter(&gradients, &sum)?);
                self.num_waiting = index;
            }
            owned_end = owned_start;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters() -> Vec<(String, Tensor)> {
        [("a", vec![3, 5]), ("b", vec![7, 2]), ("norm", vec![9])]
            .map(|(name, shape)| {
                let tensor = Tensor::rand(&shape, (Kind::Float, Device::Cpu));
                (format!("{name}.weight"), tensor.set_requires_grad(true))
            })
            .into()
    }

    #[test]
    fn parameters_keep_their_values_and_share_the_vector() {
        let parameters = parameters();
        let before: Vec<Tensor> = parameters.iter().map(|(_, p)| p.detach().copy()).collect();
        let elsewhere: Vec<Tensor> = parameters.iter().map(|(_, p)| p.shallow_clone()).collect();
        let flat = Replicated::take_over(&parameters, 1000, Arc::default()).unwrap();
        for (index, old) in before.iter().enumerate() {
            assert!(elsewhere[index].equal(old));
        }
        let loss = elsewhere
            .iter()
            .map(|p| (p * p).sum(Kind::Float))
            .reduce(|sum, part| sum + part)
            .unwrap();
        loss.backward();
        for slot in flat.layout.slots() {
            let named = parameters.iter().position(|(name, _)| *name == slot.name);
            let gradient = slot.view(&flat.gradients, 0).unwrap();
            let expected = &before[named.unwrap()] * 2.0;
            assert!(gradient.allclose(&expected, 1e-6, 1e-6, false), "{slot:?}");
        }
        let _no_grad = tch::no_grad_guard();
        let _ = flat.values.shallow_clone().fill_(2.0);
        assert!(elsewhere.iter().all(|p| p.equal(&p.full_like(2.0))));
    }
}
