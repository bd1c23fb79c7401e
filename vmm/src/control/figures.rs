//! What a scraper is told: the figures of this moment.

use std::sync::Arc;
use std::time::Duration;

use super::Controller;
use crate::api::{Outcome, Reply};
use crate::machine::Machine;
use crate::metrics::{Figures, ProcessFiles};
use crate::trace::Phase;

impl Controller {
    /// Numbers alone: whoever asked writes them down, on a thread of its own.
    pub(super) fn figures(&mut self) -> Outcome {
        let process = self.process.get_or_insert_with(|| Arc::new(ProcessFiles::open()));
        let process = process.clone();
        Ok(Reply::Figures(Box::new(Figures {
            boots: self.boots,
            resize_failures: vec![
                ("refused", self.resize_failures.refused),
                ("unanswered", self.resize_failures.unanswered),
                ("superseded", self.resize_failures.superseded),
            ],
            phases: self.phases(),
            process,
            ..self.machine().map(Machine::figures).unwrap_or_default()
        })))
    }

    /// Parts of the last start. Once that is over they are kept: the trace has a lock that vCPUs take when they begin.
    fn phases(&mut self) -> Vec<(&'static str, Duration)> {
        if self.phases.is_empty() {
            let phases = self.trace.start();
            let is_over = phases.iter().any(|(phase, _)| *phase == Phase::FirstRun);
            let phases: Vec<_> = phases.into_iter().map(|(phase, took)| (phase.name(), took)).collect();
            if !is_over {
                return phases;
            }
            self.phases = phases;
        }
        self.phases.clone()
    }
}
