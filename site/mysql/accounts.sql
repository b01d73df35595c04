-- The database of www.foobar.com and its two accounts, for MySQL 8 and MariaDB. May be run again.
-- OWNER_PASSWORD and APP_PASSWORD are placeholders: site/README.md shows how to fill them in.
--
-- The balancer keeps client addresses, so the database sees the application servers themselves and the
-- accounts can be bound to their network.

CREATE DATABASE IF NOT EXISTS foobar CHARACTER SET utf8mb4;

-- The owner brings the schema up to date (`foobar-site migrate`) and is used for nothing else: migrations
-- create, alter and drop tables and indexes, and record in a table of their own what was done.
CREATE USER IF NOT EXISTS 'foobar_owner'@'10.0.2.%' IDENTIFIED BY 'OWNER_PASSWORD';
GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX, REFERENCES
    ON foobar.* TO 'foobar_owner'@'10.0.2.%';

-- The application reads, adds entries and counts visits. It deletes nothing and changes no table, so
-- neither does whoever breaks into an application server.
CREATE USER IF NOT EXISTS 'foobar_app'@'10.0.2.%' IDENTIFIED BY 'APP_PASSWORD';
GRANT SELECT, INSERT, UPDATE ON foobar.* TO 'foobar_app'@'10.0.2.%';
