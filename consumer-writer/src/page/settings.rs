//! The settings of the live page.

use std::net::SocketAddr;

use pingfleet_http::{HttpSettings, Limits, ServeError, Server};
use pingfleet_settings::{Failure, Layers, keys};

/// The address of the writer's page, if none is set.
pub const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8787);

/// The resolved settings of the live page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DashboardSettings {
    /// The server.
    pub http: HttpSettings,
    /// Whether the user set the address. Then it is an error when it cannot be served.
    pub is_asked: bool,
}

impl DashboardSettings {
    /// Resolves the settings; problems are collected in `layers`. None when the page is off.
    pub fn resolve(layers: &mut Layers) -> Option<Self> {
        let listen = layers.optional(&keys::DASHBOARD_LISTEN);
        let token_file = layers.optional(&keys::DASHBOARD_TOKEN_FILE);
        let name = layers.optional(&keys::DASHBOARD_NAME);
        Some(Self {
            http: HttpSettings {
                listen: listen.unwrap_or(Some(DEFAULT_LISTEN))?,
                flag: "--dashboard",
                section: "dashboard",
                name,
                token_file,
                limits: Limits::default(),
            },
            is_asked: listen.is_some(),
        })
    }

    /// Listens. None when the page cannot be served and nobody asked for it: then a warning says why.
    ///
    /// # Errors
    /// A [`Failure`] when somebody asked for it.
    pub async fn bind(&self) -> Result<Option<Server>, Failure> {
        let bound = Server::bind(&self.http).await;
        match bound {
            Ok(server) => {
                tracing::info!(
                    url = %format_args!("http://{}/", server.address()),
                    needs_token = server.needs_token(),
                    "live page ready"
                );
                Ok(Some(server))
            }
            Err(error) if self.is_asked => Err(error.into()),
            Err(error) => {
                log_refusal(&error);
                Ok(None)
            }
        }
    }
}

fn log_refusal(error: &ServeError) {
    tracing::warn!(%error, "no live page");
}
