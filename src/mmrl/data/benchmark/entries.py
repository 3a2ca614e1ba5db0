"""The 15 data sets of the paper. To add one, add an `Entry` here."""

from __future__ import annotations

from mmrl.data.benchmark import imagenet, readers
from mmrl.data.benchmark.entry import TERMS, Entry

_CALTECH = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
_EUROSAT = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}

_ALL = (
    Entry(
        name="imagenet", title="ImageNet", folder="imagenet", images="images", image_folders=("images/train", "images/val"),
        summary="1000 kinds of objects and animals; its validation images are the test set",
        source="Deng, Dong, Socher, Li, Li, Fei-Fei: ImageNet: A Large-Scale Hierarchical Image Database, CVPR 2009",
        licence="non-commercial research and education only; " + TERMS,
        classes=1000, train=1_281_167, test=50_000, needs=("classnames.txt",), raw=imagenet.whole,
    ),
    Entry(
        name="caltech101", title="Caltech101", folder="caltech-101", images="101_ObjectCategories",
        summary="objects of 100 categories (faces in close-up and background left out)",
        source="Fei-Fei, Fergus, Perona: Learning Generative Visual Models from Few Training Examples, CVPR Workshop 2004",
        licence="CC BY 4.0", classes=100, train=4128, val=1649, test=2465, split="split_zhou_Caltech101.json",
        raw=readers.class_folders(leave_out=("BACKGROUND_Google", "Faces_easy"), rename=_CALTECH),
    ),
    Entry(
        name="oxford_pets", title="OxfordPets", folder="oxford_pets", images="images", template="a photo of a {}, a type of pet.",
        summary="37 breeds of cats and dogs",
        source="Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012",
        licence="CC BY-SA 4.0", classes=37, train=2944, val=736, test=3669, split="split_zhou_OxfordPets.json",
        needs=("annotations/trainval.txt", "annotations/test.txt"), raw=readers.pet_lists,
    ),
    Entry(
        name="stanford_cars", title="StanfordCars", folder="stanford_cars", images="", image_folders=("cars_train", "cars_test"),
        summary="196 cars by make, model and year",
        source="Krause, Stark, Deng, Fei-Fei: 3D Object Representations for Fine-Grained Categorization, ICCV Workshops 2013",
        classes=196, train=6509, val=1635, test=8041, split="split_zhou_StanfordCars.json",
        needs=("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"), raw=readers.car_annotations,
    ),
    Entry(
        name="oxford_flowers", title="Flowers102", folder="oxford_flowers", images="jpg", template="a photo of a {}, a type of flower.",
        summary="102 flowers that grow in the United Kingdom",
        source="Nilsback, Zisserman: Automated Flower Classification over a Large Number of Classes, ICVGIP 2008",
        classes=102, train=4093, val=1633, test=2463, split="split_zhou_OxfordFlowers.json",
        needs=("imagelabels.mat", "cat_to_name.json"), raw=readers.flower_labels,
    ),
    Entry(
        name="food101", title="Food101", folder="food-101", images="images", template="a photo of {}, a type of food.",
        summary="101 dishes",
        source="Bossard, Guillaumin, Van Gool: Food-101: Mining Discriminative Components with Random Forests, ECCV 2014",
        classes=101, train=50_500, val=20_200, test=30_300, split="split_zhou_Food101.json", raw=readers.class_folders(),
    ),
    Entry(
        name="fgvc_aircraft", title="FGVCAircraft", folder="fgvc_aircraft", images="images",
        template="a photo of a {}, a type of aircraft.", summary="100 variants of aircraft",
        source="Maji, Rahtu, Kannala, Blaschko, Vedaldi: Fine-Grained Visual Classification of Aircraft, arXiv 1306.5151, 2013",
        licence="non-commercial research only; " + TERMS, classes=100, train=3334, val=3333, test=3333,
        needs=("variants.txt", "images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt"),
        raw=readers.aircraft_lists,
    ),
    Entry(
        name="sun397", title="SUN397", folder="sun397", images="SUN397", summary="397 scenes, indoors and outdoors",
        source="Xiao, Hays, Ehinger, Oliva, Torralba: SUN Database: Large-Scale Scene Recognition from Abbey to Zoo, CVPR 2010",
        classes=397, train=15_880, val=3970, test=19_850, split="split_zhou_SUN397.json",
        needs=("ClassName.txt", "Training_01.txt", "Testing_01.txt"), raw=readers.scene_lists,
    ),
    Entry(
        name="dtd", title="DTD", folder="dtd", images="images", template="{} texture.", summary="47 textures, named by adjectives",
        source="Cimpoi, Maji, Kokkinos, Mohamed, Vedaldi: Describing Textures in the Wild, CVPR 2014",
        classes=47, train=2820, val=1128, test=1692, split="split_zhou_DescribableTextures.json", raw=readers.class_folders(),
    ),
    Entry(
        name="eurosat", title="EuroSAT", folder="eurosat", images="2750", template="a centered satellite photo of {}.",
        summary="10 kinds of land use and cover, seen by the satellite Sentinel-2",
        source="Helber, Bischke, Dengel, Borth: EuroSAT: A Novel Dataset and Deep Learning Benchmark for Land Use and Land Cover "
        "Classification, IEEE J-STARS 2019",
        licence="MIT", classes=10, train=13_500, val=5400, test=8100, split="split_zhou_EuroSAT.json",
        raw=readers.class_folders(rename=_EUROSAT),
    ),
    Entry(
        name="ucf101", title="UCF101", folder="ucf101", images="UCF-101-midframes", template="a photo of a person doing {}.",
        summary="101 human actions: the middle frame of each video",
        source="Soomro, Zamir, Shah: UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild, CRCV-TR-12-01, 2012",
        classes=101, train=7639, val=1898, test=3783, split="split_zhou_UCF101.json",
        needs=tuple(f"ucfTrainTestlist/{name}.txt" for name in ("classInd", "trainlist01", "testlist01")), raw=readers.action_lists,
    ),
    Entry(
        name="imagenetv2", title="ImageNetV2", folder="imagenetv2", images="imagenetv2-matched-frequency-format-val",
        summary="ImageNet's classes in photographs taken ten years later",
        source="Recht, Roelofs, Schmidt, Shankar: Do ImageNet Classifiers Generalize to ImageNet?, ICML 2019",
        licence="MIT", classes=1000, test=10_000, needs=("classnames.txt",), raw=imagenet.numbered, same_classes_as="imagenet",
    ),
    Entry(
        name="imagenet_sketch", title="ImageNet-Sketch", folder="imagenet-sketch", images="images",
        summary="ImageNet's classes in black and white sketches",
        source="Wang, Ge, Lipton, Xing: Learning Robust Global Representations by Penalizing Local Predictive Power, NeurIPS 2019",
        classes=1000, test=50_889, needs=("classnames.txt",), raw=imagenet.variant, same_classes_as="imagenet",
    ),
    Entry(
        name="imagenet_a", title="ImageNet-A", folder="imagenet-adversarial", images="imagenet-a",
        summary="photographs of 200 of ImageNet's classes that a ResNet-50 gets wrong",
        source="Hendrycks, Zhao, Basart, Steinhardt, Song: Natural Adversarial Examples, CVPR 2021",
        classes=200, test=7500, needs=("classnames.txt",), raw=imagenet.variant, same_classes_as="imagenet",
    ),
    Entry(
        name="imagenet_r", title="ImageNet-R", folder="imagenet-rendition", images="imagenet-r",
        summary="200 of ImageNet's classes as art, cartoons, toys, embroidery and other renditions",
        source="Hendrycks, Basart, Mu, Kadavath, Wang, Dorundo, et al.: The Many Faces of Robustness, ICCV 2021",
        classes=200, test=30_000, needs=("classnames.txt",), raw=imagenet.variant, same_classes_as="imagenet",
    ),
)  # fmt: skip
ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _ALL}
