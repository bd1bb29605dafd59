//! Saving: every rank takes a snapshot of its share of a checkpoint at the end of a step, and writes it at once or in a thread
//! while training goes on.
//!
//! The ranks meet when the first has made the folder, when all have written their shares, when the manifest describes them, and
//! when the checkpoint has its name; at each they learn whether all went well. While a thread writes they ask each other at the
//! end of every step whether all are done. Collectives are called between steps only, never from the thread.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use asyncthink_checkpoint::{Part, Task, wait_for_parts};
use asyncthink_distributed::{AdamW, optimizer_files};
use asyncthink_recipe::SaveInBackground;
use tch::Device;

use super::shared_folder::longest_lag;
use super::snapshot::{PendingSave, RankSnapshot};
use super::stage_run::StageRun;
use super::{check_finite_state, exchanged_bytes};
use crate::error::{Error, Result};
use crate::observer::Observer;
use asyncthink_gradient::PolicyModel;

impl StageRun {
    /// Books a finished step; saves if that is due, and looks after the save under way.
    pub(crate) fn finish_step(
        &mut self,
        model: &PolicyModel,
        optimizer: &AdamW,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        self.exchanged_at_line = Some(exchanged_bytes(&self.ranks));
        self.state.step += 1;
        if self.is_finished() {
            return self.save(model, optimizer, observer);
        }
        let started = Instant::now();
        if self.state.step.is_multiple_of(self.save.every_steps) {
            self.finish_save(observer)?;
            let in_background = is_in_background(self.save.in_background, model.device());
            self.begin_save(model, optimizer, in_background)?;
            if !in_background {
                self.finish_save(observer)?;
            }
        } else if self.pending.is_some() {
            self.look_after_save(observer)?;
        } else {
            return Ok(());
        }
        self.save_seconds += started.elapsed().as_secs_f64();
        Ok(())
    }

    /// Saves and waits for it, unless the newest checkpoint is of this step.
    pub(crate) fn save(
        &mut self,
        model: &PolicyModel,
        optimizer: &AdamW,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let started = Instant::now();
        self.finish_save(observer)?;
        if self.saved.as_ref().map(|(step, _)| *step) != Some(self.state.step) {
            self.begin_save(model, optimizer, false)?;
            self.finish_save(observer)?;
        }
        self.save_seconds += started.elapsed().as_secs_f64();
        Ok(())
    }

    /// Takes a snapshot and begins to write it.
    fn begin_save(
        &mut self,
        model: &PolicyModel,
        optimizer: &AdamW,
        in_background: bool,
    ) -> Result<()> {
        if self.save.is_off {
            return Ok(());
        }
        self.state.num_updates = optimizer.num_updates();
        self.set_save_phase(self.state.step);
        // What ranks that have drifted apart would write belongs to no run.
        self.ranks.check_order()?;
        self.ranks
            .agree(check_finite_state(self.state.step, model, optimizer))?;
        let share = self.share(model, optimizer, in_background);
        let share = self.ranks.agree(share)?;
        let partial = share.model.as_ref().map(|model| model.partial.clone());
        let state = self.state.clone();
        let part = Arc::default();
        let written = Arc::clone(&part);
        // Alone, there is nobody to wait for in between.
        let to_seal = partial.clone().filter(|_| self.ranks.is_alone());
        let is_sealing = to_seal.is_some();
        let sealed_state = state.clone();
        let work = move || {
            share.write()?;
            if let Some(partial) = to_seal {
                return Ok(partial.seal(&sealed_state)?);
            }
            // Set once: by this thread or not at all.
            let _ = OnceLock::set(&written, share.part()?);
            Ok(())
        };
        self.pending = Some(PendingSave {
            state,
            partial,
            part,
            task: if in_background {
                Task::start(work)
            } else {
                Task::done(work())
            },
            is_sealing,
        });
        Ok(())
    }

    fn share(
        &mut self,
        model: &PolicyModel,
        optimizer: &AdamW,
        is_copy: bool,
    ) -> Result<RankSnapshot> {
        let written = model.snapshot(optimizer, is_copy)?;
        let moments = optimizer_files::snapshot(optimizer, &self.ranks)?;
        let is_finished = self.is_finished();
        let model = match (&mut self.folder, written) {
            (Some(folder), Some(model)) => {
                Some(folder.begin_checkpoint(&mut self.state, model, is_finished)?)
            }
            _ => None,
        };
        Ok(RankSnapshot {
            dir: self.store.partial_dir(self.state.step),
            moments,
            model,
        })
    }

    /// Goes on with the save under way as far as all ranks are done with their parts.
    fn look_after_save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        while let Some(pending) = &self.pending {
            let is_done = f64::from(u8::from(pending.task.is_done()));
            let all = self.ranks.gather_values(&[is_done])?;
            if all.iter().any(|of_rank| of_rank[0] == 0.0) {
                break;
            }
            self.advance_save(observer)?;
        }
        Ok(())
    }

    /// Waits for the save under way, if there is one.
    fn finish_save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        while self.pending.is_some() {
            self.advance_save(observer)?;
        }
        Ok(())
    }

    /// Waits for what all ranks are at and does what comes after it.
    fn advance_save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let Some(pending) = self.pending.take() else {
            return Ok(());
        };
        let PendingSave {
            state,
            partial,
            part,
            task,
            is_sealing,
        } = pending;
        self.set_save_phase(state.step);
        self.ranks.agree(task.wait())?;
        if !is_sealing {
            let sealed_state = state.clone();
            let parts = self.parts_of_all(&part)?;
            let limit = longest_lag(&self.ranks);
            let task = match partial.clone() {
                Some(partial) => Task::start(move || {
                    wait_for_parts(partial.dir(), &parts, limit)?;
                    Ok(partial.seal(&sealed_state)?)
                }),
                None => Task::done(Ok(())),
            };
            self.pending = Some(PendingSave {
                state,
                partial,
                part,
                task,
                is_sealing: true,
            });
            return Ok(());
        }
        let dir = match (&self.folder, &partial) {
            (Some(folder), Some(partial)) => folder.publish(partial, state.step),
            _ => Ok(self.store.dir_of(state.step)),
        };
        let dir = self.ranks.agree(dir)?;
        observer.saved(&dir, state.step);
        self.saved = Some((state.step, dir));
        Ok(())
    }

    /// The files that the ranks have written, in their order.
    fn parts_of_all(&self, own: &OnceLock<Part>) -> Result<Vec<Part>> {
        let failed = |error| Error::stage("telling the first rank what was written", error);
        let own = serde_json::to_vec(&own.get()).map_err(failed)?;
        let all = self.ranks.gather_bytes(&own)?;
        let all = all.iter().map(|bytes| serde_json::from_slice(bytes));
        let all: Vec<Option<Part>> = all.collect::<Result<_, _>>().map_err(failed)?;
        Ok(all.into_iter().flatten().collect())
    }

    fn set_save_phase(&self, step: u64) {
        let stage = &self.state.stage;
        self.ranks
            .set_phase(&format!("{stage}: saving step {step}"));
    }

    /// Finishes the save under way of a run that fails, saves its last finished step too if the weights are still those of
    /// that step, and hands the error back. A save that fails changes nothing about the error.
    pub(crate) fn fail(
        &mut self,
        error: Error,
        model: &PolicyModel,
        optimizer: &AdamW,
        num_updates_before: u64,
        observer: &mut dyn Observer,
    ) -> Error {
        if !self.ranks.is_alone() && !error.is_of_all_ranks() {
            return error;
        }
        let is_good = self.state.step > 0 && optimizer.num_updates() == num_updates_before;
        let saved = self.finish_save(observer).and_then(|()| {
            if is_good {
                self.save(model, optimizer, observer)?;
            }
            Ok(())
        });
        if let Err(error) = saved {
            observer.warning(&format!(
                "the last finished step could not be saved: {error}"
            ));
        }
        error
    }
}

fn is_in_background(choice: SaveInBackground, device: Device) -> bool {
    match choice {
        SaveInBackground::Always => true,
        SaveInBackground::Never => false,
        SaveInBackground::Auto => device != Device::Cpu,
    }
}
