//! One list of promises for both brokers.

/// Makes a test over RabbitMQ and one in process of each of these functions.
macro_rules! over_both_brokers {
    ($($promise:ident),* $(,)?) => {
        mod over_rabbitmq {
            $(#[tokio::test]
            async fn $promise() -> anyhow::Result<()> {
                super::$promise(&crate::rig::rabbit(stringify!($promise)).await?).await
            })*
        }

        mod in_process {
            $(#[tokio::test]
            async fn $promise() -> anyhow::Result<()> {
                super::$promise(&crate::rig::memory()).await
            })*
        }
    };
}
