// Package e2e tests the whole in containers: the servers of docker-compose.yml,
// real clients, and what happens to a primary. Its tests need Docker with
// Compose and say so; -short leaves them out.
package e2e
