package source

import "testing"

func TestGlobs(t *testing.T) {
	for name, tc := range map[string]struct {
		globs Globs
		file  string
		want  bool
	}{
		"none":                     {Globs{}, "a/b", true},
		"a name anywhere":          {Globs{Include: []string{"*.bin"}}, "a/b/c.bin", true},
		"another name":             {Globs{Include: []string{"*.bin"}}, "a/b.bin/c", false},
		"a path from the root":     {Globs{Include: []string{"a/*.bin"}}, "a/b.bin", true},
		"with a leading slash":     {Globs{Include: []string{"/b.bin"}}, "a/b.bin", false},
		"a directory":              {Globs{Exclude: []string{"original/**"}}, "original/x/y", false},
		"of any depth":             {Globs{Include: []string{"**/x/*"}}, "a/b/x/y", true},
		"excluded though included": {Globs{Include: []string{"*"}, Exclude: []string{".*"}}, ".gitattributes", false},
		"hidden":                   {Globs{Include: []string{"*"}}, ".gitattributes", true},
		"alternatives":             {Globs{Include: []string{"*.{json,txt}"}}, "a.txt", true},
	} {
		if err := tc.globs.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := tc.globs.Match(tc.file); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
	for _, bad := range []string{"", "[a", "{a"} {
		if (Globs{Exclude: []string{bad}}).Check() == nil {
			t.Errorf("%q passed", bad)
		}
	}
}
