//! Which task, and where a record stands: the two small values by which the gateway knows its tasks. Pure.

use uuid::Uuid;

/// Namespace of task ids that are made from idempotency keys, and of keys made from ids that are no UUIDs.
const NAMESPACE: Uuid = Uuid::from_u128(0x6c61_7374_6361_6c6c_8000_7461_736b_6964);

/// A task's id in 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::gateway) struct TaskKey(u128);

impl TaskKey {
    /// Ids of our own are UUIDs and keep their value; ids of strangers are hashed.
    pub(super) fn from_id(id: &str) -> Self {
        match Uuid::try_parse(id) {
            // Only the form that we write ourselves: the same UUID in another spelling is another id.
            Ok(uuid) if uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == id => Self(uuid.as_u128()),
            _ => Self(Uuid::new_v5(&NAMESPACE, id.as_bytes()).as_u128()),
        }
    }

    /// The key of one of our own ids.
    pub(super) fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid.as_u128())
    }

    /// The id, if the key is that of one of our own.
    pub(super) fn as_uuid(self) -> Uuid {
        Uuid::from_u128(self.0)
    }

    #[cfg(test)]
    pub(super) fn from_number(number: u128) -> Self {
        Self(number)
    }
}

/// The task that an idempotency key stands for, the same on every gateway.
pub(super) fn task_of_key(idempotency_key: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("idempotency-key:{idempotency_key}").as_bytes())
}

/// What gateways claim before one of them produces a task again whose record, which stood there, Kafka has dropped.
pub(super) fn claim_of_loss(key: TaskKey, lost: Position) -> Uuid {
    let Position { partition, offset } = lost;
    Uuid::new_v5(&NAMESPACE, format!("lost:{}:{partition}:{offset}", key.as_uuid()).as_bytes())
}

/// A digest of a task's text, to tell apart two requests with one key. Not for secrets: SHA-1 cut to 122 bits.
pub(super) fn digest(text: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, text.as_bytes())
}

/// Where a record stands in its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::gateway) struct Position {
    pub(super) partition: i32,
    pub(super) offset: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_uuid_are_different_ids() {
        let id = "018f2f6e-7b1c-7c5a-9d3e-0123456789ab";
        assert_eq!(TaskKey::from_id(id), TaskKey::from_uuid(Uuid::parse_str(id).unwrap()));
        for other in ["018F2F6E-7B1C-7C5A-9D3E-0123456789AB", "018f2f6e7b1c7c5a9d3e0123456789ab", "task-1", ""] {
            assert_ne!(TaskKey::from_id(other), TaskKey::from_id(id), "{other}");
            assert_eq!(TaskKey::from_id(other), TaskKey::from_id(other));
        }
    }

    #[test]
    fn a_key_stands_for_one_task_and_a_text_for_one_digest() {
        assert_eq!(task_of_key("order-1"), task_of_key("order-1"));
        assert_ne!(task_of_key("order-1"), task_of_key("order-2"));
        let lost = |offset| claim_of_loss(TaskKey::from_number(1), Position { partition: 0, offset });
        assert!(lost(1) == lost(1) && lost(1) != lost(2), "a task can get lost twice");
        assert_eq!(digest("a"), digest("a"));
        assert_ne!(digest("a"), digest("b"));
    }
}
