package swarm

// What decides how a Session behaves towards tracker, origin and peers, for those who model one
// (bench/sim). The reasons are with the constants of the same names.
const (
	Fetchers       = fetchers
	MinRetry       = minRetry
	Reconnect      = reconnect
	MaxDialled     = maxDialled
	SilentAfter    = silentAfter
	OvertakenAfter = overtakenAfter
	OrphanAfter    = orphanAfter
	MaxStuck       = maxStuck
)
