//! The writer, as `consumer-writer` composes it, except that the page has a runtime of its own, whose threads have
//! another name. It ends when its standard input does.

use std::{
    io::{self, Read as _},
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::anyhow;
use consumer_writer::{
    WriterSettings, WriterSummary,
    page::{self, PageSources},
};
use pingfleet_broker::{Broker, RabbitBroker, RabbitConfig};
use pingfleet_http::{HttpSettings, Limits, Server};
use pingfleet_store::{DatabaseThread, Durability, FileLock, FileMode, OpenOptions, Transport};
use tokio::{runtime::Builder, sync::watch};
use tokio_util::sync::CancellationToken;

/// The name of the page's threads.
pub(crate) const PAGE_THREAD: &str = "live-page";

/// Threads stay until the end: the system forgets the processor time of those that end.
const FOREVER: Duration = Duration::from_hours(24);

/// Writes until the end of standard input. Prints the address of the page, or an empty line, when it is ready.
pub(crate) fn write(database: &Path, broker: &str, with_page: bool) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    thread::spawn(move || {
        // Whatever ends it, it is the end.
        io::stdin().read_to_end(&mut Vec::new()).ok();
        stopped.cancel();
    });
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let options = OpenOptions {
            path: database.to_owned(),
            durability: Durability::Full,
            create: true,
            mode: FileMode::User,
            check: false,
        };
        let db = DatabaseThread::open(options).await?;
        let _lock = FileLock::writer(db.path())?;
        let (summary, follow) = watch::channel(WriterSummary::default());
        let page_stop = CancellationToken::new();
        let mut serving = None;
        if with_page {
            let sources = PageSources {
                database: database.to_owned(),
                broker: connect(broker)?,
                transport: Transport::Broker,
                summary: follow,
                failure: Arc::default(),
                flags: String::new(),
            };
            let stop = page_stop.clone();
            serving = Some(
                thread::Builder::new()
                    .name(PAGE_THREAD.to_owned())
                    .spawn(move || serve(sources, stop))?,
            );
        } else {
            println!();
        }
        // The defaults.
        let settings = WriterSettings {
            transport: Transport::Broker,
            login: None,
            batch_size: 5000,
            batch_interval: Duration::from_millis(200),
        };
        let written = consumer_writer::run(connect(broker)?, &db, &settings, summary, stop).await;
        page_stop.cancel();
        if let Some(serving) = serving {
            serving.join().map_err(|_| anyhow!("the page panicked"))??;
        }
        db.close().await?;
        written?;
        Ok(())
    })
}

fn connect(broker: &str) -> anyhow::Result<Arc<dyn Broker>> {
    Ok(Arc::new(RabbitBroker::new(&RabbitConfig::new(broker))?))
}

/// Prints the address of the page, and serves it until `stop`.
fn serve(sources: PageSources, stop: CancellationToken) -> anyhow::Result<()> {
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .thread_name(PAGE_THREAD)
        .thread_keep_alive(FOREVER)
        .build()?;
    runtime.block_on(async {
        let settings = HttpSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            flag: "--dashboard",
            section: "dashboard",
            name: None,
            token_file: None,
            limits: Limits::default(),
        };
        let server = Server::bind(&settings).await?;
        println!("{}", server.address());
        page::serve(server, sources, stop).await;
        anyhow::Ok(())
    })
}
