//! Where the bucket is in the network, and the HTTP client that goes there.

use std::fs;
use std::path::Path;
use std::time::Duration;

use reqwest::{Certificate, Url, redirect};

use crate::s3::config::{Addressing, S3Config};

/// Idle connections are given up before a server or a firewall forgets them; a new one resolves the name anew.
const IDLE: Duration = Duration::from_secs(15);
/// A dead peer of a connection that waits for an answer is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Longest certificate file that is read.
const CA_LEN_MAX: u64 = 4 << 20;

/// The client: HTTP/1.1, the system's certificates and our own, no redirects, since a signature is for one host.
pub(super) fn client(config: &S3Config) -> Result<reqwest::Client, String> {
    let limits = &config.limits;
    let mut builder = reqwest::Client::builder()
        .connect_timeout(Duration::from_millis(limits.connect_timeout_ms))
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(usize::from(limits.connections_max))
        .tcp_keepalive(KEEP_ALIVE)
        .tcp_nodelay(true)
        .redirect(redirect::Policy::none())
        .user_agent(concat!("tidefs/", env!("CARGO_PKG_VERSION")));
    if config.endpoint.starts_with("http://") {
        // Reading the system's certificates takes longer than opening the volume.
        builder = builder.tls_built_in_root_certs(false);
    }
    if let Some(path) = &config.ca_file {
        for certificate in certificates(path)? {
            builder = builder.add_root_certificate(certificate);
        }
    }
    builder
        .build()
        .map_err(|error| format!("the HTTP client cannot be made: {error}"))
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let shown = path.display();
    let unreadable =
        |error: std::io::Error| format!("the certificates in {shown} cannot be read: {error}");
    let len = fs::metadata(path).map_err(unreadable)?.len();
    if len > CA_LEN_MAX {
        return Err(format!(
            "{shown} has {len} bytes: that is no file of certificates"
        ));
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    match Certificate::from_pem_bundle(&bytes) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!("{shown} holds no certificate in PEM form")),
        Err(error) => Err(format!(
            "{shown} holds no certificates in PEM form: {error}"
        )),
    }
}

/// The bucket's address, without a slash at its end unless it is the whole path.
pub(super) fn bucket(config: &S3Config) -> Result<Url, String> {
    let unusable = |error: &dyn std::fmt::Display| {
        format!("the endpoint {} is no address: {error}", config.endpoint)
    };
    let mut url = Url::parse(&config.endpoint).map_err(|error| unusable(&error))?;
    match config.addressing {
        Addressing::Path => url.set_path(&config.bucket),
        Addressing::VirtualHost => {
            let host = format!("{}.{}", config.bucket, url.host_str().unwrap_or_default());
            url.set_host(Some(&host))
                .map_err(|error| unusable(&error))?;
        }
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_stands_in_the_path_or_in_the_host() {
        let mut config = S3Config::new("http://nas.lan:9000", "backup");
        assert_eq!(
            bucket(&config).unwrap().as_str(),
            "http://nas.lan:9000/backup"
        );
        config.addressing = Addressing::VirtualHost;
        assert_eq!(
            bucket(&config).unwrap().as_str(),
            "http://backup.nas.lan:9000/"
        );
        config.endpoint = "http://[::1]:9000".into();
        assert!(bucket(&config).is_err(), "an address has no names below it");
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = S3Config::new("https://nas.lan", "backup");
        config.ca_file = Some(directory.path().join("ca.pem"));
        assert!(client(&config).unwrap_err().contains("cannot be read"));
        fs::write(directory.path().join("ca.pem"), "no certificate").unwrap();
        assert!(client(&config).unwrap_err().contains("PEM"));
    }
}
