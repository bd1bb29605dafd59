use std::collections::VecDeque;

use crate::{Timeline, WorkerIndex};

/// What the discrete-event simulation of an episode measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Simulation {
    /// Steps until the organizer ended.
    pub latency_tokens: u64,
    /// The sum over the steps of the agents decoding, the organizer included.
    pub agent_steps: u64,
    /// The part of `agent_steps` decoded by workers that the organizer never joined.
    pub unjoined_steps: u64,
    /// The most agents that decoded in one step.
    pub max_active: usize,
}

/// A worker at its place.
struct Running {
    worker: usize,
    num_left: u64,
}

/// The world at one moment. It shares no arithmetic with the recursion of `Timeline::latency`, which
/// is its purpose: time only ever advances to the next thing that happens.
struct World<'a> {
    timeline: &'a Timeline,
    fragment: usize,
    /// Tokens decoded of the current fragment.
    at_tokens: u64,
    /// Forks done of the current fragment.
    num_forked: usize,
    waiting: VecDeque<usize>,
    running: Vec<Running>,
    is_finished: Vec<bool>,
    has_ended: bool,
}

impl Timeline {
    /// Plays the episode event by event: the organizer decodes, waits at Joins and ends; workers
    /// with tokens to decode take places in Fork order, decode, and are cancelled when the organizer ends. An independent
    /// check of [`Timeline::latency`] and [`Timeline::concurrency`].
    pub fn simulate(&self) -> Simulation {
        let mut world = World {
            timeline: self,
            fragment: 0,
            at_tokens: 0,
            num_forked: 0,
            waiting: VecDeque::new(),
            running: Vec::new(),
            is_finished: vec![false; self.num_forks()],
            has_ended: false,
        };
        let mut measured = Simulation::default();
        loop {
            while world.settle() {}
            if world.has_ended {
                return measured;
            }
            let Some(num_steps) = world.steps_to_next_event() else {
                // A checked timeline never stands still before its end.
                return measured;
            };
            let num_active = world.running.len() + usize::from(world.organizer_steps().is_some());
            let num_unjoined = world
                .running
                .iter()
                .filter(|running| !self.is_joined(WorkerIndex(running.worker)))
                .count();
            measured.latency_tokens += num_steps;
            measured.agent_steps += num_steps * num_active as u64;
            measured.unjoined_steps += num_steps * num_unjoined as u64;
            measured.max_active = measured.max_active.max(num_active);
            world.pass(num_steps);
        }
    }
}

impl World<'_> {
    /// Lets one thing happen that takes no time; `false` when nothing is left.
    fn settle(&mut self) -> bool {
        if self.has_ended {
            return false;
        }
        if let Some(place) = self.running.iter().position(|worker| worker.num_left == 0) {
            let worker = self.running.swap_remove(place).worker;
            self.is_finished[worker] = true;
            return true;
        }
        let max_workers = usize::try_from(self.timeline.capacity.max_workers());
        if self.running.len() < max_workers.unwrap_or(usize::MAX)
            && let Some(worker) = self.waiting.pop_front()
        {
            let num_left = self.timeline.worker_tokens[worker];
            self.running.push(Running { worker, num_left });
            return true;
        }
        let fragment = &self.timeline.fragments[self.fragment];
        match fragment.forks.get(self.num_forked) {
            Some(fork) if fork.at_tokens == self.at_tokens => {
                let worker = fork.worker.0;
                if self.timeline.worker_tokens[worker] == 0 {
                    self.is_finished[worker] = true;
                } else {
                    self.waiting.push_back(worker);
                }
                self.num_forked += 1;
                true
            }
            Some(_) => false,
            None if self.at_tokens < fragment.num_tokens => false,
            None => match fragment.join {
                None => {
                    self.has_ended = true;
                    true
                }
                Some(WorkerIndex(worker)) if self.is_finished[worker] => {
                    self.fragment += 1;
                    self.at_tokens = 0;
                    self.num_forked = 0;
                    true
                }
                Some(_) => false,
            },
        }
    }

    /// Tokens that the organizer decodes before its next Fork, Join or end; `None` while it waits.
    fn organizer_steps(&self) -> Option<u64> {
        let fragment = &self.timeline.fragments[self.fragment];
        let next = match fragment.forks.get(self.num_forked) {
            Some(fork) => fork.at_tokens,
            None => fragment.num_tokens,
        };
        Some(next - self.at_tokens).filter(|&num_steps| num_steps > 0)
    }

    fn steps_to_next_event(&self) -> Option<u64> {
        let workers = self.running.iter().map(|worker| worker.num_left);
        workers.chain(self.organizer_steps()).min()
    }

    fn pass(&mut self, num_steps: u64) {
        if self.organizer_steps().is_some() {
            self.at_tokens += num_steps;
        }
        for worker in &mut self.running {
            worker.num_left -= num_steps;
        }
    }
}
