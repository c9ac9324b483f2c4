package source

import (
	"fmt"
	"path"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// Globs choose files by their paths in the model. A pattern without a slash is compared with the
// file's name in any directory ("*.safetensors"), one with a slash with the whole path, where "**"
// stands for any number of directories ("original/**"). Names that begin with a dot are nothing
// special.
type Globs struct {
	// Include, where there are any, are the only files to take.
	Include []string
	// Exclude are not taken even if they are included.
	Exclude []string
}

// Check returns an error that names the first pattern which is none.
func (g Globs) Check() error {
	for _, patterns := range [][]string{g.Include, g.Exclude} {
		for _, pattern := range patterns {
			if pattern == "" || !doublestar.ValidatePattern(pattern) {
				return fmt.Errorf("pattern %q is not a glob: use names with *, ?, [a-z], {a,b} and **", pattern)
			}
		}
	}
	return nil
}

// Match reports whether the file is chosen. The patterns have passed Check.
func (g Globs) Match(file string) bool {
	return (len(g.Include) == 0 || matchAny(g.Include, file)) && !matchAny(g.Exclude, file)
}

func matchAny(patterns []string, file string) bool {
	for _, pattern := range patterns {
		name := path.Base(file)
		if strings.Contains(pattern, "/") {
			pattern, name = strings.TrimPrefix(pattern, "/"), file
		}
		if doublestar.MatchUnvalidated(pattern, name) {
			return true
		}
	}
	return false
}
