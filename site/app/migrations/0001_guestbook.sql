-- MySQL 8 and MariaDB. Every text column is utf8mb4, so that any character a visitor can type is kept.

CREATE TABLE entries (
    id          BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name        VARCHAR(40)     NOT NULL,
    message     VARCHAR(500)    NOT NULL,
    web_server  VARCHAR(64)     NOT NULL COMMENT 'the Nginx that passed the entry on',
    app_server  VARCHAR(64)     NOT NULL COMMENT 'the application server that stored it',
    created_at  TIMESTAMP       NOT NULL DEFAULT CURRENT_TIMESTAMP
) CHARACTER SET utf8mb4;

-- One row per application server, so that two of them never wait for the lock of one row.
CREATE TABLE visits (
    app_server  VARCHAR(64)     NOT NULL PRIMARY KEY,
    count       BIGINT UNSIGNED NOT NULL
) CHARACTER SET utf8mb4;
