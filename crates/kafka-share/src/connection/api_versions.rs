//! What a broker says of itself: the requests that it speaks, and the features of its cluster.

use std::time::Duration;

use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse};
use kafka_protocol::protocol::StrBytes;

use super::{Connection, ErrorCode, KafkaError, Result};

/// A broker's description of itself (KIP-35, KIP-584).
#[derive(Clone, Debug)]
pub struct ApiVersions(ApiVersionsResponse);

impl ApiVersions {
    /// API key of ShareGroupHeartbeat (KIP-932).
    pub const SHARE_GROUP_HEARTBEAT: i16 = 76;
    /// API key of ShareFetch (KIP-932).
    pub const SHARE_FETCH: i16 = 78;
    /// API key of ShareAcknowledge (KIP-932).
    pub const SHARE_ACKNOWLEDGE: i16 = 79;

    /// Whether the broker speaks this version of the request.
    pub fn supports(&self, api_key: i16, version: i16) -> bool {
        let mut keys = self.0.api_keys.iter();
        keys.any(|api| api.api_key == api_key && (api.min_version..=api.max_version).contains(&version))
    }

    /// The level of a feature that the cluster has switched on; `None` if it is off.
    pub fn feature_level(&self, name: &str) -> Option<i16> {
        let mut features = self.0.finalized_features.iter();
        features.find(|feature| feature.name.as_str() == name).map(|feature| feature.max_version_level)
    }
}

impl Connection {
    /// Asks for the requests that the broker speaks (ApiVersions v3, KIP-511) and its cluster's features (KIP-584).
    pub fn api_versions(&mut self, timeout: Duration) -> Result<ApiVersions> {
        const VERSION: i16 = 3;
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str(env!("CARGO_PKG_NAME")))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let correlation = self.send(VERSION, &request)?;
        let Some(mut body) = self.receive(correlation, self.muted_for() + timeout)? else {
            self.close();
            return Err(self.late("ApiVersions", timeout));
        };
        // A broker older than 2.4 answers in version 0, which begins with the same field.
        if body.first_chunk::<2>() == Some(&ErrorCode::UNSUPPORTED_VERSION.0.to_be_bytes()) {
            return Err(KafkaError::broker("ApiVersions", ErrorCode::UNSUPPORTED_VERSION, None));
        }
        let response = self.decode::<ApiVersionsRequest>(&mut body, VERSION)?;
        ErrorCode(response.error_code).check("ApiVersions", None)?;
        Ok(ApiVersions(response))
    }
}
