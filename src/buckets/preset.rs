//! What is usual with each maker of object stores, so that an operator types what differs and no more.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vfs::s3::Addressing;

/// Whose S3 it is. A name for what is filled in, not for what is done: the requests are the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Amazon's own.
    Aws,
    /// MinIO.
    Minio,
    /// Ceph's object gateway.
    Ceph,
    /// Garage.
    Garage,
    /// Cloudian HyperStore.
    Cloudian,
    /// Scality RING and Zenko.
    Scality,
    /// Dell EMC ECS.
    EmcEcs,
    /// Alibaba Cloud OSS.
    Alibaba,
    /// Any other.
    Custom,
}

/// Whether a server of this maker keeps `If-None-Match`, as far as is known without asking it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expectation {
    /// It should; an old release, or a proxy before it, may not.
    Kept,
    /// It is known not to.
    Ignored,
    /// Only a test tells.
    Unknown,
}

struct Usual {
    name: &'static str,
    title: &'static str,
    addressing: Addressing,
    /// None where it must be said.
    region: Option<&'static str>,
    /// With `{region}` in it; none where it must be said.
    endpoint: Option<&'static str>,
    conditional_put: Expectation,
}

impl Preset {
    /// All of them, in the order of the help.
    pub const ALL: [Preset; 9] = [
        Preset::Aws,
        Preset::Minio,
        Preset::Ceph,
        Preset::Garage,
        Preset::Cloudian,
        Preset::Scality,
        Preset::EmcEcs,
        Preset::Alibaba,
        Preset::Custom,
    ];

    fn usual(self) -> Usual {
        let own_server = Usual {
            name: "custom",
            title: "S3 of another maker",
            addressing: Addressing::Path,
            region: Some("us-east-1"),
            endpoint: None,
            conditional_put: Expectation::Unknown,
        };
        match self {
            Preset::Aws => Usual {
                name: "aws",
                title: "Amazon S3",
                addressing: Addressing::VirtualHost,
                region: None,
                endpoint: Some("https://s3.{region}.amazonaws.com"),
                conditional_put: Expectation::Kept,
            },
            Preset::Minio => Usual {
                name: "minio",
                title: "MinIO",
                conditional_put: Expectation::Kept,
                ..own_server
            },
            Preset::Ceph => Usual {
                name: "ceph",
                title: "Ceph object gateway",
                conditional_put: Expectation::Kept,
                ..own_server
            },
            Preset::Garage => Usual {
                name: "garage",
                title: "Garage",
                region: Some("garage"),
                conditional_put: Expectation::Ignored,
                ..own_server
            },
            Preset::Cloudian => Usual {
                name: "cloudian",
                title: "Cloudian HyperStore",
                ..own_server
            },
            Preset::Scality => Usual {
                name: "scality",
                title: "Scality",
                ..own_server
            },
            Preset::EmcEcs => Usual {
                name: "emc-ecs",
                title: "Dell EMC ECS",
                ..own_server
            },
            Preset::Alibaba => Usual {
                name: "alibaba",
                title: "Alibaba Cloud OSS",
                // A bucket's name in the path is refused there.
                addressing: Addressing::VirtualHost,
                region: None,
                endpoint: Some("https://s3.oss-{region}.aliyuncs.com"),
                // It has a header of its own for this.
                conditional_put: Expectation::Ignored,
            },
            Preset::Custom => own_server,
        }
    }

    /// As it is typed.
    pub fn name(self) -> &'static str {
        self.usual().name
    }

    /// As its maker calls it.
    pub fn title(self) -> &'static str {
        self.usual().title
    }

    /// Where the bucket's name stands in a request.
    pub fn addressing(self) -> Addressing {
        self.usual().addressing
    }

    /// The region to sign for, where there is a usual one.
    pub fn region(self) -> Option<&'static str> {
        self.usual().region
    }

    /// Where the server of `region` is, where that follows from it.
    pub fn endpoint(self, region: &str) -> Option<String> {
        let pattern = self.usual().endpoint?;
        Some(pattern.replace("{region}", region))
    }

    /// What is expected of `If-None-Match`.
    pub fn conditional_put(self) -> Expectation {
        self.usual().conditional_put
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(text: &str) -> Result<Preset, String> {
        let found = Preset::ALL.into_iter().find(|preset| preset.name() == text);
        found.ok_or_else(|| {
            let names: Vec<_> = Preset::ALL.iter().map(|preset| preset.name()).collect();
            format!("no such type of bucket: known are {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_preset_is_typed_stored_and_read_under_one_name() {
        for preset in Preset::ALL {
            assert_eq!(preset.name().parse::<Preset>(), Ok(preset));
            let stored = serde_json::to_string(&preset).unwrap();
            assert_eq!(stored, format!("\"{}\"", preset.name()));
        }
        assert!("AWS".parse::<Preset>().unwrap_err().contains("emc-ecs"));
    }

    #[test]
    fn where_an_endpoint_follows_from_the_region_the_region_must_be_said() {
        let endpoint = Preset::Aws.endpoint("eu-central-1").unwrap();
        assert_eq!(endpoint, "https://s3.eu-central-1.amazonaws.com");
        for preset in Preset::ALL {
            assert_eq!(
                preset.endpoint("x").is_some(),
                preset.region().is_none(),
                "{preset}"
            );
        }
    }
}
