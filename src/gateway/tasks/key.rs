//! The key of a task and the position of a record: the two small values by which the gateway refers to tasks. Pure.

use uuid::Uuid;

/// Namespace of task ids made from idempotency keys, and of keys made from ids that are not UUIDs.
const NAMESPACE: Uuid = Uuid::from_u128(0x6c61_7374_6361_6c6c_8000_7461_736b_6964);

/// A task's id in 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::gateway) struct TaskKey(u128);

impl TaskKey {
    /// Ids made by gateways are UUIDs and keep their value; other ids are hashed.
    pub(super) fn from_id(id: &str) -> Self {
        match Uuid::try_parse(id) {
            // Only the spelling that gateways write: the same UUID in another spelling is another id.
            Ok(uuid) if uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == id => Self(uuid.as_u128()),
            _ => Self(Uuid::new_v5(&NAMESPACE, id.as_bytes()).as_u128()),
        }
    }

    /// The key of an id made by a gateway.
    pub(super) fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid.as_u128())
    }

    /// The id, if a gateway made it.
    pub(super) fn as_uuid(self) -> Uuid {
        Uuid::from_u128(self.0)
    }

    #[cfg(test)]
    pub(super) fn from_number(number: u128) -> Self {
        Self(number)
    }
}

/// The id of the task of an idempotency key, the same on every gateway.
pub(super) fn task_of_key(idempotency_key: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("idempotency-key:{idempotency_key}").as_bytes())
}

/// The key that gateways claim before one of them produces a dropped task again.
pub(super) fn claim_of_loss(key: TaskKey, lost: Position) -> Uuid {
    let Position { partition, offset } = lost;
    Uuid::new_v5(&NAMESPACE, format!("lost:{}:{partition}:{offset}", key.as_uuid()).as_bytes())
}

/// A digest of a task's text, to distinguish two requests with one key. Not for secrets: SHA-1 cut to 122 bits.
pub(super) fn digest(text: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, text.as_bytes())
}

/// The position of a record in its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::gateway) struct Position {
    pub(super) partition: i32,
    pub(super) offset: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_a_uuid_are_different_ids() {
        let id = "018f2f6e-7b1c-7c5a-9d3e-0123456789ab";
        assert_eq!(TaskKey::from_id(id), TaskKey::from_uuid(Uuid::parse_str(id).unwrap()));
        for other in ["018F2F6E-7B1C-7C5A-9D3E-0123456789AB", "018f2f6e7b1c7c5a9d3e0123456789ab", "task-1", ""] {
            assert_ne!(TaskKey::from_id(other), TaskKey::from_id(id), "{other}");
            assert_eq!(TaskKey::from_id(other), TaskKey::from_id(other));
        }
    }

    #[test]
    fn idempotency_key_has_one_task_and_text_has_one_digest() {
        assert_eq!(task_of_key("order-1"), task_of_key("order-1"));
        assert_ne!(task_of_key("order-1"), task_of_key("order-2"));
        let lost = |offset| claim_of_loss(TaskKey::from_number(1), Position { partition: 0, offset });
        assert!(lost(1) == lost(1) && lost(1) != lost(2), "a task can get lost twice");
        assert_eq!(digest("a"), digest("a"));
        assert_ne!(digest("a"), digest("b"));
    }
}
