//! DescribeConfigs and IncrementalAlterConfigs: the settings of topics, brokers and groups as clients see them.
//!
//! Called by the dispatcher. The settings themselves are in [`settings`](super::settings).

use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult};
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::{
    DescribeConfigsRequest, DescribeConfigsResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::rights::{Operation, Resource};
use super::settings::{GROUP, Known, Settings, TOPIC, Values};
use super::state::{Caller, State, is_topic_name};
use kafka_share::ErrorCode;

/// Resource types of both requests.
const OF_TOPIC: i8 = 2;
const OF_BROKER: i8 = 4;
const OF_GROUP: i8 = 32;

/// Source of a value (Kafka's `ConfigSource`).
pub(super) const TOPIC_SOURCE: i8 = 1;
const GROUP_SOURCE: i8 = 8;
const STATIC_BROKER_SOURCE: i8 = 4;
const DEFAULT_SOURCE: i8 = 5;

/// Operations of IncrementalAlterConfigs (KIP-339).
const SET: i8 = 0;
const DELETE: i8 = 1;

/// A refusal and its reason.
type Refusal = (ErrorCode, String);

/// Returns the source of the value in force; `own` is the source of a value that was set.
pub(super) fn source_of(known: &Known, values: &Values, settings: &Settings, own: i8) -> i8 {
    if values.has(known) {
        own
    } else if known.default(settings) == known.default(&Settings::new(Vec::new())) {
        DEFAULT_SOURCE
    } else {
        STATIC_BROKER_SOURCE
    }
}

impl State {
    /// DescribeConfigs.
    pub fn describe_configs(&self, caller: &Caller, request: &DescribeConfigsRequest) -> DescribeConfigsResponse {
        let results = request.resources.iter().map(|resource| {
            let result = DescribeConfigsResult::default()
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name.clone())
                .with_error_message(None);
            let (kind, name) = (resource.resource_type, resource.resource_name.as_str());
            let right = self.check_config_right(caller, Operation::DescribeConfigs, kind, name);
            match right.and_then(|()| self.described_configs(caller, resource)) {
                Ok(configs) => result.with_configs(configs),
                Err((code, message)) => {
                    result.with_error_code(code.0).with_error_message(Some(StrBytes::from_string(message)))
                }
            }
        });
        DescribeConfigsResponse::default().with_results(results.collect())
    }

    fn described_configs(
        &self,
        caller: &Caller,
        resource: &DescribeConfigsResource,
    ) -> Result<Vec<DescribeConfigsResourceResult>, Refusal> {
        let name = resource.resource_name.as_str();
        let none = Values::default();
        let (table, values, own) = match resource.resource_type {
            OF_TOPIC => (TOPIC, &self.existing_topic(name)?.values, TOPIC_SOURCE),
            OF_GROUP if !name.is_empty() => (GROUP, self.group_values.get(name).unwrap_or(&none), GROUP_SOURCE),
            OF_BROKER if name == caller.node.to_string() => return Ok(self.described_broker(resource)),
            _ => return Err((ErrorCode::INVALID_REQUEST, "no such resource".to_owned())),
        };
        let keys = resource.configuration_keys.as_ref();
        let wanted =
            table.iter().filter(|known| keys.is_none_or(|keys| keys.iter().any(|key| key.as_str() == known.name)));
        let wanted = wanted.filter(|known| self.settings.knows(known.name));
        let configs = wanted.map(|known| {
            DescribeConfigsResourceResult::default()
                .with_name(StrBytes::from_static_str(known.name))
                .with_value(Some(StrBytes::from_string(values.get(known, &self.settings).to_owned())))
                .with_config_source(source_of(known, values, &self.settings, own))
        });
        Ok(configs.collect())
    }

    fn described_broker(&self, resource: &DescribeConfigsResource) -> Vec<DescribeConfigsResourceResult> {
        let keys = resource.configuration_keys.as_ref();
        let wanted = |name: &str| keys.is_none_or(|keys| keys.iter().any(|key| key.as_str() == name));
        let configs = self.settings.of_broker().filter(|(name, _)| wanted(name)).map(|(name, value)| {
            DescribeConfigsResourceResult::default()
                .with_name(StrBytes::from_static_str(name))
                .with_value(Some(StrBytes::from_string(value.to_owned())))
                .with_config_source(STATIC_BROKER_SOURCE)
        });
        configs.collect()
    }

    fn existing_topic(&self, name: &str) -> Result<&super::state::Topic, Refusal> {
        if !is_topic_name(name) {
            return Err((ErrorCode::INVALID_TOPIC_EXCEPTION, format!("{name:?} is no name for a topic")));
        }
        self.topics.get(name).ok_or_else(|| (ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, String::new()))
    }

    fn check_config_right(
        &self,
        caller: &Caller,
        operation: Operation,
        resource_type: i8,
        name: &str,
    ) -> Result<(), Refusal> {
        let resource = match resource_type {
            OF_TOPIC => Resource::Topic(name),
            OF_GROUP => Resource::Group(name),
            _ => Resource::Cluster,
        };
        let right = self.check_right(caller, operation, resource);
        right.map_err(|code| (code, "Authorization failed.".to_owned()))
    }

    /// IncrementalAlterConfigs: changes all given settings of a resource, or none.
    pub fn alter_configs(
        &mut self,
        caller: &Caller,
        request: &IncrementalAlterConfigsRequest,
    ) -> IncrementalAlterConfigsResponse {
        let responses = request.resources.iter().map(|resource| {
            let (kind, name) = (resource.resource_type, resource.resource_name.as_str());
            let right = self.check_config_right(caller, Operation::AlterConfigs, kind, name);
            let altered = right.and_then(|()| self.altered(resource)).map(|values| {
                if !request.validate_only {
                    self.put_values(resource, values);
                }
            });
            let response = AlterConfigsResourceResponse::default()
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name.clone())
                .with_error_message(None);
            match altered {
                Ok(()) => response,
                Err((code, message)) => {
                    response.with_error_code(code.0).with_error_message(Some(StrBytes::from_string(message)))
                }
            }
        });
        IncrementalAlterConfigsResponse::default().with_responses(responses.collect())
    }

    /// Returns the values after the change.
    fn altered(&self, resource: &AlterConfigsResource) -> Result<Values, Refusal> {
        let name = resource.resource_name.as_str();
        let (table, mut values) = match resource.resource_type {
            OF_TOPIC => (TOPIC, self.existing_topic(name)?.values.clone()),
            OF_GROUP if !name.is_empty() => (GROUP, self.group_values.get(name).cloned().unwrap_or_default()),
            _ => return Err((ErrorCode::INVALID_REQUEST, "no such resource".to_owned())),
        };
        for config in &resource.configs {
            self.alter(table, &mut values, config)?;
        }
        Ok(values)
    }

    fn alter(&self, table: &'static [Known], values: &mut Values, config: &AlterableConfig) -> Result<(), Refusal> {
        let invalid = |why: &str| (ErrorCode::INVALID_CONFIG, format!("{}: {why}", config.name.as_str()));
        let mut table = table.iter().filter(|known| self.settings.knows(known.name));
        let known = table.find(|known| known.name == config.name.as_str());
        if known.is_none() && config.config_operation == DELETE {
            // Deleting an unknown setting has no effect.
            return Ok(());
        }
        let known = known.ok_or_else(|| invalid("Unknown configuration"))?;
        let given = config.value.as_ref().map(|value| value.as_str());
        let value = match (config.config_operation, given) {
            (DELETE, _) => None,
            (SET, Some(value)) => Some(value.to_owned()),
            (_, None) => return Err((ErrorCode::INVALID_REQUEST, "Null value not supported".to_owned())),
            _ => return Err((ErrorCode::INVALID_REQUEST, "no such operation".to_owned())),
        };
        if value.as_deref().is_some_and(|value| !known.takes(value, &self.settings)) {
            return Err(invalid(&format!("Invalid value {value:?}")));
        }
        values.set(known, value);
        Ok(())
    }

    fn put_values(&mut self, resource: &AlterConfigsResource, values: Values) {
        let name = resource.resource_name.as_str();
        if resource.resource_type == OF_GROUP {
            self.group_values.insert(name.to_owned(), values);
        } else if let Some(topic) = self.topics.get_mut(name) {
            topic.values = values;
        }
    }
}
