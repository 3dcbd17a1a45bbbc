//! `broker`: sets up the broker, and the logins of those who use it.

mod changes;
mod commands;
mod credentials;
mod foreign;
mod found;
mod management;
mod roles;
mod show;

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use pingfleet_broker::{BrokerError, RabbitBroker, RabbitConfig, Role};
use pingfleet_settings::{
    BrokerArgs, Exit, FILES_FOR_QUEUES, Failure, Layers, keys, printed, run_async,
};

use self::{
    changes::{Changes, Setup},
    credentials::Credentials,
    foreign::ForeignArgs,
    management::{Management, ManagementError},
};
use crate::{ended_run::usage, report::layout::escaped};

/// Commands of `pingfleet broker`.
#[derive(Debug, Subcommand)]
pub(crate) enum BrokerCommand {
    /// Make the virtual host, queues, policies, and the logins of producer and writer
    Init(InitArgs),
    /// Make a login for a worker
    AddWorker(AddWorkerArgs),
    /// Remove the login of a worker: its connections are closed at once
    RemoveWorker(RemoveWorkerArgs),
    /// Show queues, logins and permissions, and what is not as it should be
    Show(ShowArgs),
    /// List results for other databases that writers set aside, or return them
    Foreign(ForeignArgs),
}

/// How an administrator reaches the broker.
#[derive(Debug, Args)]
struct AdministratorArgs {
    #[command(flatten)]
    broker: BrokerArgs,
    /// Management API of the broker [default: port 15672 of its host, or with amqps 15671, if the broker has its usual port]
    #[arg(long, value_name = "URL")]
    management: Option<String>,
}

/// Where the files with the logins are written, and what is in them.
#[derive(Debug, Args)]
struct CredentialsArgs {
    /// Folder for the files with the logins
    #[arg(long, value_name = "FOLDER", default_value = "credentials")]
    credentials: PathBuf,
    /// Broker's address in these files, if others reach it by another one
    #[arg(long, value_name = "HOST[:PORT]")]
    address: Option<String>,
    /// Give logins that are there new passwords
    #[arg(long)]
    renew: bool,
}

/// Arguments of `pingfleet broker init`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pingfleet broker init --broker amqp://admin@10.0.0.5:5672/pingfleet
  consumer-writer --config credentials/writer.toml
  producer --config credentials/producer.toml hosts.txt

The user of the broker's URL has to be an administrator; its virtual host is
made. A second run changes nothing. Without the management plugin
(rabbitmq-plugins enable rabbitmq_management) the queues are declared, and the
commands for the rest are printed.")]
pub(crate) struct InitArgs {
    #[command(flatten)]
    administrator: AdministratorArgs,
    #[command(flatten)]
    credentials: CredentialsArgs,
}

/// Arguments of `pingfleet broker add-worker`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pingfleet broker add-worker berlin-1 --broker amqp://admin@10.0.0.5:5672/pingfleet
  scp credentials/worker-berlin-1.toml berlin-1:
  ping-worker --config worker-berlin-1.toml")]
pub(crate) struct AddWorkerArgs {
    /// Name of the worker in its login
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    administrator: AdministratorArgs,
    #[command(flatten)]
    credentials: CredentialsArgs,
}

/// Arguments of `pingfleet broker remove-worker`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pingfleet broker remove-worker berlin-1")]
pub(crate) struct RemoveWorkerArgs {
    /// Name of the worker in its login
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    administrator: AdministratorArgs,
}

/// Arguments of `pingfleet broker show`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pingfleet broker show\n  pingfleet broker show --json | jq .problems"
)]
pub(crate) struct ShowArgs {
    /// JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    administrator: AdministratorArgs,
}

pub(crate) fn run(command: &BrokerCommand, layers: Layers, quiet: bool) -> Result<Exit, Failure> {
    match command {
        BrokerCommand::Init(args) => init(args, layers, quiet),
        BrokerCommand::AddWorker(args) => add_worker(args, layers, quiet),
        BrokerCommand::RemoveWorker(args) => remove_worker(args, layers, quiet),
        BrokerCommand::Foreign(args) => foreign::foreign(args, layers, quiet),
        BrokerCommand::Show(args) => {
            show::show(args.json, &Administrator::new(&args.administrator, layers)?)
        }
    }
}

/// The broker, as an administrator sees it.
struct Administrator {
    config: RabbitConfig,
    broker: RabbitBroker,
    management: Management,
    /// The prefix of the queues, and of the logins.
    prefix: String,
}

impl Administrator {
    fn new(args: &AdministratorArgs, mut layers: Layers) -> Result<Self, Failure> {
        let config = RabbitConfig::resolve(&args.broker, &mut layers, "pingfleet");
        layers.finish()?;
        let broker = RabbitBroker::new(&config)?;
        let ca_file = config.tls.ca.as_deref();
        let management = Management::new(broker.address(), args.management.as_deref(), ca_file);
        let management = management.map_err(|why| usage(format!("--management: {why}")))?;
        if management.is_exposed() {
            tracing::warn!(
                "the password of {} and those of new logins go to {} as plain text: anybody on the way can read them",
                management.user,
                management.place()
            );
        }
        Ok(Self {
            prefix: config.prefix.clone(),
            config,
            broker,
            management,
        })
    }

    fn credentials(&self, args: &CredentialsArgs) -> Result<Credentials, Failure> {
        let prefix = (self.prefix != keys::BROKER_PREFIX.default.0).then(|| self.prefix.clone());
        let address = args.address.as_deref();
        let broker = self.broker.address();
        let ca_file = self.config.tls.ca.as_deref();
        let found = Credentials::new(&args.credentials, broker, prefix, address, ca_file);
        found.map_err(usage)
    }

    /// Checks that the management API can be used.
    fn require_management(&self) -> Result<(), Failure> {
        let management = &self.management;
        management.check_administrator().map_err(|error| {
            let text = format!(
                "{} cannot be used: {error}. It needs the plugin (rabbitmq-plugins enable \
                 rabbitmq_management) and an administrator (rabbitmqctl set_user_tags {} administrator)",
                management.place(),
                management.user
            );
            Failure::new(Exit::System, text)
        })
    }

    fn setup<'a>(&'a self, credentials: &'a Credentials, args: &CredentialsArgs) -> Setup<'a> {
        Setup {
            broker: &self.broker,
            config: &self.config,
            management: &self.management,
            credentials,
            renew: args.renew,
        }
    }
}

fn init(args: &InitArgs, layers: Layers, quiet: bool) -> Result<Exit, Failure> {
    let administrator = Administrator::new(&args.administrator, layers)?;
    let credentials = administrator.credentials(&args.credentials)?;
    roles::check_prefix(&administrator.prefix).map_err(usage)?;
    if args.administrator.management.is_some() {
        administrator.require_management()?;
    }
    match administrator.management.check_administrator() {
        Ok(()) => {}
        Err(ManagementError::Absent(why)) => return declare(&administrator, &why),
        Err(error) => return Err(error.into()),
    }
    let mut changes = Changes::default();
    let made = make_all(args, &administrator, &credentials, &mut changes);
    let place = administrator.broker.place();
    let unchanged = format!(
        "nothing to change on {place}: virtual host, queues, policies and logins are as they should be"
    );
    report(made, &changes, &unchanged, quiet)?;
    if !quiet && !changes.done.is_empty() {
        printed(writeln!(
            io::stdout(),
            "exchanges and queues are ready on {place}"
        ))?;
    }
    Ok(Exit::Complete)
}

fn make_all(
    args: &InitArgs,
    administrator: &Administrator,
    credentials: &Credentials,
    changes: &mut Changes,
) -> Result<(), Failure> {
    let Administrator {
        broker,
        management,
        prefix,
        ..
    } = administrator;
    let setup = administrator.setup(credentials, &args.credentials);
    let found = found::find(management, broker, prefix)?;
    setup.topology(&found, changes)?;
    for login in &found.logins {
        let file = match login.role {
            Role::Worker => None,
            role => Some(role.name()),
        };
        setup.login(login, file, changes)?;
    }
    if credentials.names_this_machine() {
        changes.notes.push(
            "workers on other machines need another address than this one: pingfleet broker add-worker NAME --address HOST"
                .to_owned(),
        );
    }
    Ok(())
}

/// Without the management API: declares the queues, and prints the commands for the rest.
fn declare(administrator: &Administrator, why: &str) -> Result<Exit, Failure> {
    let Administrator {
        broker,
        management,
        prefix,
        ..
    } = administrator;
    let declared = run_async(FILES_FOR_QUEUES, async {
        Ok(changes::declare(broker).await)
    })?;
    let refusal = match declared {
        Ok(()) => None,
        // Whoever reads the commands can remedy it.
        Err(error @ BrokerError::Forbidden { .. }) => Some(error),
        Err(error) => return Err(error.into()),
    };
    let mut parts = Vec::new();
    if refusal.is_none() {
        parts.push(format!(
            "exchanges and queues are ready on {}\n\n",
            broker.place()
        ));
    }
    parts.push(format!(
        "no logins were made: {} cannot be used ({}).\n\
         On the broker's machine, these commands make them. Each add_user asks for a new password:\n\n",
        management.place(),
        escaped(why)
    ));
    if refusal.is_some() {
        let (vhost, user) = (&management.vhost, &management.user);
        parts.push(commands::of_virtual_host(vhost, user));
    }
    parts.push(commands::of_master(broker, &management.vhost, prefix));
    parts.push("\nThese make the login of a worker; write its name for NAME:\n\n".to_owned());
    parts.push(commands::of_worker(broker, &management.vhost, prefix));
    printed(write!(io::stdout(), "{}", parts.concat()))?;
    refusal.map_or(Ok(Exit::Complete), |refusal| Err(refusal.into()))
}

fn add_worker(args: &AddWorkerArgs, layers: Layers, quiet: bool) -> Result<Exit, Failure> {
    let administrator = Administrator::new(&args.administrator, layers)?;
    let credentials = administrator.credentials(&args.credentials)?;
    let login = roles::worker_login(&administrator.prefix, &args.name).map_err(usage)?;
    roles::check_prefix(&administrator.prefix).map_err(usage)?;
    administrator.require_management()?;
    let management = &administrator.management;
    if !management.has_vhost()? {
        let text = format!(
            "there is no virtual host {}: pingfleet broker init makes it",
            management.vhost
        );
        return Err(Failure::new(Exit::System, text));
    }
    let setup = administrator.setup(&credentials, &args.credentials);
    let mut changes = Changes::default();
    let found = found::login(management, login, Role::Worker, true)?;
    let file = format!("worker-{}", args.name);
    let made = setup.login(&found, Some(&file), &mut changes);
    if credentials.names_this_machine() {
        changes.notes.push(format!(
            "the broker's address in {} is that of this machine for itself: give --address HOST for a worker on another one",
            credentials.file(&file).display()
        ));
    }
    let unchanged = format!(
        "nothing to change: {} is there, with its permissions",
        found.name
    );
    report(made, &changes, &unchanged, quiet)?;
    if !quiet && found.user.is_none() {
        let authorities = credentials.ca_file().map_or_else(String::new, |path| {
            format!(", and {} to the same place there", escaped(path))
        });
        printed(writeln!(
            io::stdout(),
            "copy it to the worker's machine{authorities}, and start there: ping-worker --config {file}.toml"
        ))?;
    }
    Ok(Exit::Complete)
}

fn remove_worker(args: &RemoveWorkerArgs, layers: Layers, quiet: bool) -> Result<Exit, Failure> {
    let administrator = Administrator::new(&args.administrator, layers)?;
    let login = roles::worker_login(&administrator.prefix, &args.name).map_err(usage)?;
    administrator.require_management()?;
    let management = &administrator.management;
    let found = found::login(management, login, Role::Worker, true)?;
    if found.is_of_another_fleet() {
        let text = format!(
            "the user {} belongs to the fleet in virtual host {}",
            found.name,
            found.elsewhere.join(", ")
        );
        return Err(usage(text));
    }
    if found.user.is_some() {
        management.delete_user(&found.name)?;
    }
    // Also of a user who is gone: the last try may have ended too early. The broker closes them by itself, and this makes sure.
    let closed = changes::close_connections(management, &found.name)?;
    let said = match (found.user.is_some(), closed) {
        (false, 0) => format!("nothing to change: there is no user {}", found.name),
        (false, _) => format!(
            "closed the connections of {}, who was removed before",
            found.name
        ),
        (true, _) => match found.connections.max(closed) {
            0 => format!("removed user {}; it had no connection", found.name),
            1 => format!("removed user {}; its connection is closed", found.name),
            open => format!(
                "removed user {}; its {open} connections are closed",
                found.name
            ),
        },
    };
    if !quiet {
        printed(writeln!(io::stdout(), "{said}"))?;
    }
    Ok(Exit::Complete)
}

/// Prints what was changed, also before an error, or that nothing was.
fn report(
    made: Result<(), Failure>,
    changes: &Changes,
    unchanged: &str,
    quiet: bool,
) -> Result<(), Failure> {
    for note in &changes.notes {
        tracing::warn!("{}", escaped(note));
    }
    let lines = if quiet { &[][..] } else { &changes.done };
    for line in lines {
        printed(writeln!(io::stdout(), "{}", escaped(line)))?;
    }
    made?;
    if !changes.failures.is_empty() {
        let text = changes.failures.join("\n");
        return Err(Failure::new(Exit::System, escaped(&text)));
    }
    if !quiet && changes.done.is_empty() {
        printed(writeln!(io::stdout(), "{unchanged}"))?;
    }
    Ok(())
}
