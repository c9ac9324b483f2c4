package peer

import (
	"github.com/prometheus/client_golang/prometheus"
)

var (
	originBytes = prometheus.NewDesc("shoal_peer_origin_bytes_total", "Body bytes read from mirror and registries.", nil, nil)
	peerBytes   = prometheus.NewDesc("shoal_peer_received_bytes_total", "Body bytes received from other nodes.", nil, nil)
	sentBytes   = prometheus.NewDesc("shoal_peer_sent_bytes_total", "Body bytes sent to other nodes.", nil, nil)
	wastedBytes = prometheus.NewDesc("shoal_peer_wasted_bytes_total", "Body bytes received twice or wrong.", nil, nil)
	models      = prometheus.NewDesc("shoal_peer_models", "Desired models by state.", []string{"state"}, nil)
)

// collector reads the node's counts when they are asked for.
type collector struct{ p *Peer }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	sum := c.p.seeds.total()
	for desc, n := range map[*prometheus.Desc]int64{
		originBytes: sum.Origin, peerBytes: sum.Peers, sentBytes: sum.Sent, wastedBytes: sum.Wasted,
	} {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n))
	}
	states := map[string]int{StateResolving: 0, StateFetching: 0, StateReady: 0, StateFailed: 0}
	list, _ := c.p.progress()
	for _, m := range list {
		states[m.State]++
	}
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(models, prometheus.GaugeValue, float64(n), state)
	}
}
