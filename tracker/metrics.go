package tracker

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/tracker/lease"
)

// metrics are the tracker's own; those of the HTTP server are cmd's.
type metrics struct {
	announces     prometheus.Counter
	refused       *prometheus.CounterVec // by status
	leases        *prometheus.CounterVec // by kind
	ended         *prometheus.CounterVec // by reason
	lostNodes     prometheus.Counter
	swarms        prometheus.Gauge
	members       prometheus.Gauge
	hashLookups   *prometheus.CounterVec // by result
	hashBytes     prometheus.Gauge
	desiredModels prometheus.Gauge
	progressNodes prometheus.Gauge
}

func newMetrics() *metrics {
	name := func(n string) string { return prometheus.BuildFQName("shoal", "tracker", n) }
	counter := func(n, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name(n), Help: help})
	}
	counters := func(n, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name(n), Help: help}, []string{label})
	}
	gauge := func(n, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name(n), Help: help})
	}
	return &metrics{
		announces: counter("announces_total", "Announces that were accepted."),
		refused:   counters("requests_refused_total", "Requests answered with an error, by HTTP status.", "status"),
		leases: counters("leases_total",
			"Leases: first (nobody held the piece), import (only other zones did), second (of a slow node, again at the end), rescue (its holders do not deliver), adopted (from a tracker before this one).", "kind"),
		ended: counters("leases_ended_total",
			"Leases that ended without their piece: lapsed (the origin went past), dropped (by the node), lost (with the node).", "reason"),
		lostNodes:     counter("nodes_lost_total", "Nodes that stopped to announce themselves in a swarm."),
		swarms:        gauge("swarms", "Swarms that are known."),
		members:       gauge("members", "Live nodes, counted in each of their swarms."),
		hashLookups:   counters("hash_layer_lookups_total", "Hash layers that were asked for, by result (hit, miss).", "result"),
		hashBytes:     gauge("hash_layer_bytes", "Size of the hash layers that are kept."),
		desiredModels: gauge("desired_models", "Models in the desired set."),
		progressNodes: gauge("progress_nodes", "Nodes that reported progress of late."),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{
		m.announces, m.refused, m.leases, m.ended, m.lostNodes, m.swarms, m.members,
		m.hashLookups, m.hashBytes, m.desiredModels, m.progressNodes,
	} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

// count adds what happened in a swarm between two looks at its table.
func (m *metrics) count(before, after lease.Stats) {
	add := func(v *prometheus.CounterVec, label string, before, after int) {
		if after > before {
			v.WithLabelValues(label).Add(float64(after - before))
		}
	}
	add(m.leases, "first", before.Granted, after.Granted)
	add(m.leases, "import", before.Imports, after.Imports)
	add(m.leases, "second", before.Seconds, after.Seconds)
	add(m.leases, "rescue", before.Rescues, after.Rescues)
	add(m.leases, "adopted", before.Adopted, after.Adopted)
	add(m.ended, "lapsed", before.Lapsed, after.Lapsed)
	add(m.ended, "dropped", before.Dropped, after.Dropped)
	add(m.ended, "lost", before.Lost, after.Lost)
	m.members.Add(float64(after.Nodes - before.Nodes))
}
