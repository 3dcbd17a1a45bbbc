//! `sweep`: plans a run and does all of it in one process.

use clap::Args;
use consumer_writer::page::DashboardSettings;
use pingfleet_prober::route;
use pingfleet_settings::{DatabaseArgs, Exit, Failure, Layers, keys};
use pingfleet_store::{DatabaseSettings, Transport};
use producer::{CheckRoute, OutputArgs, PlanArgs, ProducerSettings, RunRequest};

use crate::one_process::{self, Roles, Sweep};

/// Arguments of `pingfleet sweep`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pingfleet sweep 10.0.0.0/24
  pingfleet sweep hosts.txt -c 3 --rate unlimited
  pingfleet sweep 10.0.0.0/16 --exclude 10.0.7.0/24 -u
  pingfleet sweep 10.0.0.0/16 --dashboard")]
pub(crate) struct SweepArgs {
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Show a live page in the browser while it runs [default address: 127.0.0.1:8787]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    dashboard: Option<String>,
    #[command(flatten)]
    database: DatabaseArgs,
}

pub(crate) fn sweep(args: &SweepArgs, mut layers: Layers, quiet: bool) -> Result<Exit, Failure> {
    let settings = ProducerSettings::resolve(
        &args.plan,
        &args.output,
        &mut layers,
        Transport::Sweep,
        false,
        quiet,
    );
    let roles = Roles::resolve(&mut layers);
    let database = DatabaseSettings::resolve(&args.database, &mut layers);
    let dashboard = args
        .dashboard
        .as_deref()
        .and_then(|address| dashboard(address, &mut layers));
    layers.finish()?;
    if args.dashboard.is_some() && dashboard.is_none() {
        return Err(Failure::new(
            Exit::Usage,
            "--dashboard: dashboard.listen is off; give an address, such as --dashboard=127.0.0.1:8787",
        ));
    }
    let check_route: CheckRoute =
        |address, interface| route::check_route(address.into(), interface);
    let targets = producer::read_targets_of_this_machine(&args.plan, &settings, check_route)?;
    let Some(targets) = targets else {
        return Ok(Exit::Complete);
    };
    let request = RunRequest::Plan(Box::new(targets));
    one_process::run(
        request,
        &Sweep {
            settings: &settings,
            probing: &settings.probing.probing,
            roles: &roles,
            output: &args.output,
            database: &database,
            is_quiet: quiet,
            dashboard: dashboard.as_ref(),
        },
    )
}

/// The live page at this address, or at that of the settings if it is empty. None when it is off.
fn dashboard(address: &str, layers: &mut Layers) -> Option<DashboardSettings> {
    if !address.is_empty() {
        layers.set(&keys::DASHBOARD_LISTEN, "--dashboard", address);
    }
    let found = DashboardSettings::resolve(layers)?;
    // The flag asks for it, also without an address.
    Some(DashboardSettings {
        is_asked: true,
        ..found
    })
}
