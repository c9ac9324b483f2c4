// Package archtest holds the test that keeps imports pointing one way: the components of Shoal meet
// over HTTP or BitTorrent, and import each other only where the table in the test says so. It has
// no code of its own.
package archtest
