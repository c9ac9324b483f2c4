// Package peer is the node agent: it asks the tracker which models the node should hold, brings
// their layers through the swarm into the store, publishes each model when all of its pieces are right,
// and tells the tracker how far it is.
//
// A model takes one way: its manifest and hash layers come from the mirror (the upstream registry
// where the mirror does not answer), each layer becomes a swarm.Session that writes into a
// store.Blob, and the tree of hard links appears by one rename when every piece is right. The blob's
// sha256 is checked behind that. A layer that two models share has one session.
//
// The agent holds no Kubernetes credentials. cmd/shoal runs it.
package peer
