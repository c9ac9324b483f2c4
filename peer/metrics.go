package peer

import "github.com/prometheus/client_golang/prometheus"

// collector reads the node's counts when they are asked for.
type collector struct {
	peer                                   *Peer
	origin, received, imported, sent, lost *prometheus.Desc
	models, unchecked                      *prometheus.Desc
}

func newCollector(p *Peer) *collector {
	counter := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }
	return &collector{
		peer:     p,
		origin:   counter("shoal_peer_origin_bytes_total", "Body bytes read from mirror and registries."),
		received: counter("shoal_peer_received_bytes_total", "Body bytes received from other nodes."),
		imported: counter("shoal_peer_imported_bytes_total", "Of those received: on leases, from nodes of other zones."),
		sent:     counter("shoal_peer_sent_bytes_total", "Body bytes sent to other nodes."),
		lost:     counter("shoal_peer_wasted_bytes_total", "Body bytes received twice or wrong."),
		models:   prometheus.NewDesc("shoal_peer_models", "Desired models by state.", []string{"state"}, nil),
		unchecked: prometheus.NewDesc("shoal_peer_unchecked_layers",
			"Layers with every piece right, whose whole sha256 is still being checked.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.origin, c.received, c.imported, c.sent, c.lost, c.models, c.unchecked} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	sum := c.peer.seeds.total()
	for desc, n := range map[*prometheus.Desc]int64{
		c.origin: sum.Origin, c.received: sum.Peers, c.imported: sum.Imported, c.sent: sum.Sent, c.lost: sum.Wasted,
	} {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n))
	}
	ch <- prometheus.MustNewConstMetric(c.unchecked, prometheus.GaugeValue, float64(c.peer.seeds.unchecked()))
	states := map[string]int{StateResolving: 0, StateFetching: 0, StateReady: 0, StateFailed: 0}
	list, _ := c.peer.progress()
	for _, m := range list {
		states[m.State]++
	}
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(c.models, prometheus.GaugeValue, float64(n), state)
	}
}
