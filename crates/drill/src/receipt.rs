//! The receipt of a stopped worker, read strictly: a member that is missing or has the wrong type is a fault.
//!
//! It shares no type with the worker that writes it. Pure; called by the evidence and the judge.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// The members of a receipt.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Receipt {
    pub(super) worker_id: String,
    pub(super) signal: String,
    pub(super) outcome: String,
    /// Each step of the stop, and `total`.
    pub(super) phases_ms: BTreeMap<String, f64>,
    pub(super) tasks_finished: u64,
    pub(super) tasks_returned: u64,
    pub(super) tasks_abandoned: Vec<String>,
    pub(super) exit_code: i32,
}

impl Receipt {
    /// Reads a receipt.
    ///
    /// # Errors
    /// A member is missing or has the wrong type; the message names it.
    pub(super) fn read(raw: &Value) -> Result<Self, String> {
        Self::deserialize(raw).map_err(|error| error.to_string())
    }

    /// How long the whole stop took, in seconds, if the receipt has it.
    pub(super) fn total(&self) -> Option<f64> {
        self.phases_ms.get("total").map(|total| total / 1e3)
    }

    /// Why the steps do not add up to the total.
    pub(super) fn phases_fault(&self) -> Option<String> {
        /// Time between the steps, in milliseconds.
        const MOMENTS: f64 = 500.0;
        let Some(total) = self.phases_ms.get("total") else { return Some("has no total".to_owned()) };
        let steps: Vec<f64> =
            self.phases_ms.iter().filter(|(name, _)| *name != "total").map(|(_, took)| *took).collect();
        let sum: f64 = steps.iter().sum();
        let adds_up = sum <= total + 1.0 + steps.len() as f64 && sum >= total - MOMENTS;
        (!adds_up).then(|| format!("has phases of {sum} ms in a total of {total} ms"))
    }
}

/// The tasks that a receipt calls abandoned, whatever else is wrong with it.
pub(super) fn abandoned(raw: &Value) -> impl Iterator<Item = &str> {
    raw.get("tasks_abandoned").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// The exit code in a receipt, whatever else is wrong with it.
pub(super) fn exit_code(raw: &Value) -> Option<i32> {
    raw.get("exit_code").and_then(Value::as_i64).and_then(|code| code.try_into().ok())
}
